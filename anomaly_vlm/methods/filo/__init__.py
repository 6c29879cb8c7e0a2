"""FiLo: see `method.py`."""

from anomaly_vlm.methods.filo.method import FiLo

__all__ = ["FiLo"]
