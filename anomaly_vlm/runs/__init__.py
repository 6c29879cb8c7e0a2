"""Runs as functions: build, fit, evaluate, predict. Usable without a command line."""
