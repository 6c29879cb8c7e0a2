"""FAPrompt, ICCV 2025: compound abnormality prompts with a prior from the image, on AnomalyCLIP's towers."""

from anomaly_vlm.methods.faprompt.method import FAPrompt

__all__ = ["FAPrompt"]
