"""AnoVL: see `method.py`."""

from anomaly_vlm.methods.anovl.method import AnoVL

__all__ = ["AnoVL"]
