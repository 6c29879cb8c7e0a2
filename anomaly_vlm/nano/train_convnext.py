"""`make nano MODEL=convnext`: text tower, drawn pictures, image tower, file. An interrupted run resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anomaly_vlm.methods.vl4ad.vocabulary import concept_vectors
from anomaly_vlm.nano import road_text
from anomaly_vlm.nano.convnext import as_convnext, new_convnext
from anomaly_vlm.nano.loop import Plan, keep, pass_gate, train_stage
from anomaly_vlm.nano.model import save_model
from anomaly_vlm.nano.road_image import WEIGHTS, RoadStage
from anomaly_vlm.nano.road_views import draw_road_views, open_road_pool

VALUES = ("cells_4", "cells_8", "cells_16", "cells_32", "segments")
COLUMNS = ("stage", "step", *WEIGHTS, *(f"val_{name}" for name in VALUES))


def train_convnext(cfg: dict[str, Any], folder: Path, tell: Callable[[str], None]) -> Path:
    """Trains as `conf/nano_convnext.yaml` says, in `folder`; returns the weights file.

    Leaves `text.pt`, `stage_0.pt` (state to resume from), `curve.csv`, `text_gate.json`, `nano_convnext.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seed, options = cfg["seed"], cfg["image"]
    model = new_convnext(seed)
    backbone = as_convnext(model)
    _text_tower(model, backbone, cfg, folder, tell)
    pool = open_road_pool(Path(cfg["pool"]).expanduser(), seed=seed, tell=tell, **cfg["drawn"])
    bank = road_text.caption_bank(backbone, seed=seed, each=cfg["captions_each"])
    stage = RoadStage(backbone, bank, thing_texts(backbone), seed=seed)
    plan = Plan(
        title="image",
        number=0,
        steps=options["steps"],
        lr=options["lr"],
        images=options["batch"],
        every=cfg["every"],
        validate_every=cfg["validate_every"],
        kept=folder / "stage_0.pt",
        curve=folder / "curve.csv",
        columns=COLUMNS,
    )
    train_stage(
        stage,
        plan,
        lambda step: draw_road_views(pool, seed=seed, step=step, count=options["batch"]),
        lambda: stage.validate(cfg["val_count"], seed),
        tell,
    )
    stage.learned.load_state_dict(stage.average.state_dict())
    path = folder / "nano_convnext.safetensors"
    save_model(model, road_text.token_rows(), path)
    tell(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return path


@torch.no_grad()
def thing_texts(backbone: Any) -> torch.Tensor:
    """[things + 1, C] of unit norm: the mean of a thing's words in VL4AD's templates; something else by the OOD prompts."""
    book = road_text.vocabulary()
    rows = []
    for nouns in (*road_text.things(), tuple(text for entry in book.proposed for text in entry)):
        rows.append(concept_vectors(backbone, nouns, book.templates).mean(0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def _text_tower(model: Any, backbone: Any, cfg: dict[str, Any], folder: Path, tell: Callable[[str], None]) -> None:
    kept = folder / "text.pt"
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return
    road_text.train(backbone, seed=cfg["seed"], tell=tell, **cfg["text"])
    facts = road_text.gate(backbone, seed=cfg["seed"])
    pass_gate(facts, folder, tell, accuracy="class_accuracy")
    keep(model.state_dict(), kept)
