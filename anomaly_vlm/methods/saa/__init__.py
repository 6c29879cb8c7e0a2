"""SAA: see `method.py`."""

from anomaly_vlm.methods.saa.method import SAA

__all__ = ["SAA"]
