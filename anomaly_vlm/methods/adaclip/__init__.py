"""AdaCLIP: see `method.py`."""

from anomaly_vlm.methods.adaclip.method import AdaCLIP

__all__ = ["AdaCLIP"]
