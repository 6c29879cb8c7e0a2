"""The published checkpoints of FAPrompt: AnomalyCLIP's layout, and the prior network."""

from __future__ import annotations

from dataclasses import replace

from anomaly_vlm.methods.anomalyclip.published import LAYOUT as DUAL_PATH
from anomaly_vlm.methods.faprompt.method import FAPrompt


def key(method: FAPrompt, name: str) -> str:
    """The published key of a learnable parameter."""
    return DUAL_PATH.key(method, name).replace("prior.", "patch_meta_net.")


LAYOUT = replace(DUAL_PATH, key=key)
