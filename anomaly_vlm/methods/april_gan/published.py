"""The published checkpoints of APRIL-GAN: one entry `trainable_linearlayer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anomaly_vlm.methods.april_gan.method import AprilGAN
from anomaly_vlm.methods.base.published import PublishedLayout


def key(method: AprilGAN, name: str) -> str:
    """The published key of a learnable parameter."""
    return name.replace("projection.", "fc.")


def unwrap(method: AprilGAN, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a published file."""
    state: dict[str, Tensor] = content.get("trainable_linearlayer", content)
    return state


LAYOUT = PublishedLayout(key=key, unwrap=unwrap)
