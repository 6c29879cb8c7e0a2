"""VL4AD: see `method.py`."""

from anomaly_vlm.methods.vl4ad.method import VL4AD

__all__ = ["VL4AD"]
