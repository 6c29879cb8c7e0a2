"""AdaCLIP, ECCV 2024: hybrid learnable prompts in both towers of a frozen CLIP."""

from anomaly_vlm.methods.adaclip.method import AdaCLIP

__all__ = ["AdaCLIP"]
