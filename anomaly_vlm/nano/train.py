"""`make nano`: text tower, pool, image tower in two resolutions, file. An interrupted run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.nano import text
from anomaly_vlm.nano.image import ImageStage
from anomaly_vlm.nano.loop import Plan, keep, pass_gate, train_stage
from anomaly_vlm.nano.model import as_backbone, new_model, save_model
from anomaly_vlm.nano.pool import open_pool
from anomaly_vlm.nano.views import Views, draw_views
from anomaly_vlm.nano.words import token_rows
from anomaly_vlm.nano.zero_shot import quick_values, score_set

GROUPS: dict[str, str] = {family.category: family.kind for family in FAMILIES.values()}


def train_nano(cfg: dict[str, Any], folder: Path, tell: Callable[[str], None]) -> Path:
    """Trains as `conf/nano.yaml` says, in `folder`; returns the weights file.

    Leaves `text.pt`, `stage_N.pt` (state to resume from), `curve.csv` (losses and validation), `text_gate.json`,
    `nano.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(cfg["seed"])
    directions = _text_stage(model, cfg, folder, tell)
    pool = open_pool(Path(cfg["pool"]).expanduser(), seed=cfg["seed"], each=cfg["twins"], tell=tell)
    bank = text.caption_bank(model, seed=cfg["seed"], each=cfg["captions_each"])
    stage = ImageStage(as_backbone(model), bank, directions)
    for number, options in enumerate(cfg["stages"]):
        _image_stage(stage, pool, cfg, options, number, folder, tell)
    model.visual.load_state_dict(stage.average.state_dict())
    path = folder / "nano.safetensors"
    save_model(model, token_rows(), path)
    tell(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return path


def _text_stage(model: Any, cfg: dict[str, Any], folder: Path, tell: Callable[[str], None]) -> text.Directions:
    kept, options = folder / "text.pt", cfg["text"]
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return text.Directions(model.text_projection.shape[1], cfg["seed"])
    directions = text.train(model, seed=cfg["seed"], tell=tell, **options)
    facts = text.gate(model, directions, seed=cfg["seed"])
    pass_gate(facts, folder, tell, accuracy="noun_accuracy")
    keep(model.state_dict(), kept)
    return directions


def _image_stage(
    stage: ImageStage, pool: Any, cfg: dict[str, Any], options: dict[str, Any], number: int, folder: Path, tell: Any
) -> None:
    """One resolution, with its own learning-rate cycle."""
    pairs, side = options["batch"] // 2, options["side"]
    plan = Plan(
        title=f"{side} px",
        number=number,
        steps=math.ceil(options["images"] / (2 * pairs)),
        lr=options["lr"],
        images=2 * pairs,
        every=cfg["every"],
        validate_every=cfg["validate_every"],
        kept=folder / f"stage_{number}.pt",
        curve=folder / "curve.csv",
        columns=COLUMNS,
    )
    if number and not plan.kept.is_file():
        stage.backbone.visual.load_state_dict(stage.average.state_dict())

    def draw(step: int) -> Views:
        return draw_views(pool, seed=cfg["seed"], step=step, pairs=pairs, side=side, patch=stage.backbone.patch_size)

    train_stage(stage, plan, draw, lambda: _validate(stage, side, cfg), tell)


def _validate(stage: ImageStage, side: int, cfg: dict[str, Any]) -> dict[str, float]:
    """The averaged weights on fresh pictures of the training families."""
    visual = stage.backbone.visual
    stage.backbone.visual = stage.average
    try:
        source = ProceduralSource(val_count=cfg["val_count"])
        return quick_values(score_set(stage.backbone, source, side="val", size=side), GROUPS)
    finally:
        stage.backbone.visual = visual


COLUMNS = (
    "stage", "step", "patches", "dice", "state", "rank", "caption", "material", "windows",
    "val_image", "val_image_object", "val_image_texture", "val_pixel",
)  # fmt: skip
