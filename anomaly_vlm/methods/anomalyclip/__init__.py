"""AnomalyCLIP: see `method.py`."""

from anomaly_vlm.methods.anomalyclip.method import AnomalyCLIP

__all__ = ["AnomalyCLIP"]
