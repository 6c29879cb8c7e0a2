"""Defects: each function changes the material around one spot and returns the window's new image."""
