"""Sentences that are changed on purpose, as a run's configuration asks for."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from anomaly_vlm.backbone.frozen import FrozenClip
from anomaly_vlm.data import AnomalyData
from anomaly_vlm.errors import UserError
from anomaly_vlm.texts.rewrite import rewriter


def rewrite_texts(cfg: DictConfig, backbone: Any, data: AnomalyData) -> None:
    """Lets a backbone read sentences that are changed on purpose, where `texts` asks for it.

    Raises:
        UserError: An unknown way to change them, or a backbone that reads no texts.
    """
    mode = cfg.get("texts", "as_written")
    categories = {sample.category for side, source in data.sources.items() if source for sample in data.samples(side)}
    rewrite = rewriter(mode, sorted(categories))
    if rewrite is None:
        return
    if not isinstance(backbone, FrozenClip):
        raise UserError(f"texts={mode}: {backbone.describe()} reads no texts: leave texts out")
    backbone.rewrite = rewrite
