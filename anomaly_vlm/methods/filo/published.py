"""FiLo's published checkpoints: one entry, `filo`, the whole model with its frozen towers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anomaly_vlm.methods.base.published import PublishedLayout
from anomaly_vlm.methods.filo.method import FiLo


def key(method: FiLo, name: str) -> str:
    """The published key of the learnable parameter `name`."""
    module, *rest = name.split(".")
    if module != "heads":
        return name.replace("normal.", "normal_prompt_learner.", 1) if module.endswith("normal") else name
    if rest[0] == "linear":
        return f"decoder_linear.fc.{'.'.join(rest[1:])}"
    _, head, _, kernel, kind = rest
    return f"decoder_cov.fc_{kernel}.{head}.{kind}"


def unwrap(method: FiLo, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a published file."""
    state: dict[str, Tensor] = content.get("filo", content)
    return state


def ignored(method: FiLo, key: str) -> bool:
    """Whether a key belongs to the frozen towers, which the file holds twice, or to what an ablation leaves out."""
    if key.startswith("decoder_cov."):
        return not method.heads.mmci_names
    return key.startswith(("clip_model.", "text_encoder.")) or (key.startswith("adapter.") and method.adapter is None)


LAYOUT = PublishedLayout(key=key, unwrap=unwrap, ignored=ignored)
