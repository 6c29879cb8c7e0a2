"""Bayes-PFL: learned prompts with random offsets from distributions that follow the image and the state."""

from anomaly_vlm.methods.bayes_pfl.method import BayesPFL

__all__ = ["BayesPFL"]
