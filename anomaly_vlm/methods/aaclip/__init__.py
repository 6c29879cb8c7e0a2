"""AA-CLIP: adapters in both towers, trained in two stages: texts apart first, then patches to texts."""

from anomaly_vlm.methods.aaclip.method import AACLIP

__all__ = ["AACLIP"]
