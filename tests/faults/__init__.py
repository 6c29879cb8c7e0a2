"""What a run does when the world around it breaks, through the real command line."""
