"""FineGrainedAD: see `method.py`."""

from anomaly_vlm.methods.finegrainedad.method import FineGrainedAD

__all__ = ["FineGrainedAD"]
