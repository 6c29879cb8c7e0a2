"""The published checkpoints of AnomalyCLIP: one entry `prompt_learner`, whose contexts have an axis more than here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod
from anomaly_vlm.methods.base.published import PublishedLayout

# Projections that the published code never calls, and buffers that follow from the backbone's token table.
UNUSED = ("compound_prompt_projections.", "token_prefix_", "token_suffix_", "tokenized_prompts_")


def key(method: DualPathMethod, name: str) -> str:
    """The published key of a learnable parameter."""
    return {"normal": "ctx_pos", "abnormal": "ctx_neg"}.get(name, name.replace("deep.", "compound_prompts_text."))


def unwrap(method: DualPathMethod, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a published file, with contexts as they are here, `[1, n, Dt]`."""
    state = content.get("prompt_learner", content)
    return {name: value[0] if name in ("ctx_pos", "ctx_neg") else value for name, value in state.items()}


def ignored(method: DualPathMethod, key: str) -> bool:
    """Whether nothing of this configuration uses a key."""
    return key.startswith(UNUSED)


LAYOUT = PublishedLayout(key=key, unwrap=unwrap, ignored=ignored)
