"""Checkpoints of UniADet: none are published; the keys are those of a third party's files, with an entry `state_dict`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anomaly_vlm.methods.base.published import PublishedLayout
from anomaly_vlm.methods.uniadet.method import UniADet


def key(method: UniADet, name: str) -> str:
    """The key of a learnable parameter in the file."""
    return name


def unwrap(method: UniADet, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file."""
    state: dict[str, Tensor] = content.get("state_dict", content)
    return state


LAYOUT = PublishedLayout(key=key, unwrap=unwrap)
