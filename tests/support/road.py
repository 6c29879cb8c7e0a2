"""Small road methods and batches for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import yaml

from anomaly_vlm.backbone import ConvNextBackbone, load_backbone
from anomaly_vlm.data import AnomalyDataModule, Batch, Preprocess
from anomaly_vlm.data.drawn.roads import ProceduralRoadSource
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.vl4ad import VL4AD
from tests.support.conf import CONF, loss_conf

SMALL = {
    "queries": 6,
    "hidden": 32,
    "heads": 2,
    "pixel_layers": 1,
    "pixel_ffn": 32,
    "decoder_layers": 2,
    "decoder_ffn": 32,
}


@cache
def _conf() -> dict[str, Any]:
    conf = yaml.safe_load((CONF / "backbone" / "tiny_convnext.yaml").read_text())
    return {key: value for key, value in conf.items() if key != "_target_"}


def tiny_convnext(**changes: Any) -> ConvNextBackbone:
    """The shipped tiny backbone."""
    return load_backbone(**{**_conf(), **changes})


def small_vl4ad(**options: Any) -> VL4AD:
    """A method of seconds, all else at its constructor's defaults."""
    return VL4AD(
        tiny_convnext(), **{"decoder": {**SMALL, "points": 64}, "losses": build_terms(loss_conf("vl4ad")), **options}
    )


def road_data(**options: Any) -> AnomalyDataModule:
    """Small drawn scenes, at their own size."""
    source = ProceduralRoadSource(height=50, width=90, train_count=4, val_count=2, test_count=3)
    data = AnomalyDataModule(
        train=source, val=source, test=source, **{"batch_size": 2, "eval_batch_size": 1, **options}
    )
    backbone = tiny_convnext()
    data.preprocess = Preprocess(96, backbone.mean, backbone.std, mask_resize="nearest", fit="native")
    return data


def first_batch(side: str = "train", **options: Any) -> Batch:
    data = road_data(**options)
    return next(iter(data.train_dataloader() if side == "train" else data.test_dataloader()))


def any_images(height: int, width: int, *, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
