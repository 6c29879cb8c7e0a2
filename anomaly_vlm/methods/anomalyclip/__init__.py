"""AnomalyCLIP, ICLR 2024: two learned sentences that name no category, on a frozen CLIP."""

from anomaly_vlm.methods.anomalyclip.method import AnomalyCLIP

__all__ = ["AnomalyCLIP"]
