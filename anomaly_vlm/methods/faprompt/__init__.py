"""FAPrompt: see `method.py`."""

from anomaly_vlm.methods.faprompt.method import FAPrompt

__all__ = ["FAPrompt"]
