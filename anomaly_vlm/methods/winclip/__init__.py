"""WinCLIP: see `method.py`."""

from anomaly_vlm.methods.winclip.method import WinCLIP

__all__ = ["WinCLIP"]
