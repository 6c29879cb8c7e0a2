"""PromptAD: see `method.py`."""

from anomaly_vlm.methods.promptad.method import PromptAD

__all__ = ["PromptAD"]
