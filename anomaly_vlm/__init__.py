"""anomaly_vlm: visual anomaly detection with vision-language models, many methods on one frozen CLIP.

The names below are loaded when they are first used, so that `import anomaly_vlm` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_vlm.api import load_backbone, load_checkpoint, load_method
    from anomaly_vlm.data import Batch
    from anomaly_vlm.errors import UserError
    from anomaly_vlm.methods.base.method import AnomalyMethod
    from anomaly_vlm.methods.base.prediction import Prediction

__version__ = "0.2.0"
__all__ = ["AnomalyMethod", "Batch", "Prediction", "UserError", "load_backbone", "load_checkpoint", "load_method"]

_HOMES = {
    "AnomalyMethod": "anomaly_vlm.methods.base.method",
    "Batch": "anomaly_vlm.data",
    "Prediction": "anomaly_vlm.methods.base.prediction",
    "UserError": "anomaly_vlm.errors",
    "load_backbone": "anomaly_vlm.api",
    "load_checkpoint": "anomaly_vlm.api",
    "load_method": "anomaly_vlm.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'anomaly_vlm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
