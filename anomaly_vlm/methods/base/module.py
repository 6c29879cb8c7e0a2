"""The class that methods are made of: Lightning's module, or torch's alone in a process that only predicts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from anomaly_vlm.methods.base import WITHOUT_LIGHTNING

# Importing Lightning takes longer than scoring a few images, and `anomaly-vlm predict`, `watch` and `serve` use nothing of
# it: there, and there alone, methods are plain torch modules; everywhere else each of them is a LightningModule.
if TYPE_CHECKING or WITHOUT_LIGHTNING not in os.environ:
    from lightning import LightningModule as Module
else:
    from torch.nn import Module

__all__ = ["Module"]
