"""`make nano`: text tower, pictures, crops, image tower, file. An interrupted run resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.nano import text
from anomaly_vlm.nano.crops import FACTS, FreshViews, open_crops
from anomaly_vlm.nano.image import ImageStage, check_distil
from anomaly_vlm.nano.loop import Plan, keep, pass_gate, train_stage
from anomaly_vlm.nano.model import ARCHITECTURE, as_backbone, new_model, save_model
from anomaly_vlm.nano.pool import open_pool
from anomaly_vlm.nano.teacher import load_teacher
from anomaly_vlm.nano.words import token_rows
from anomaly_vlm.nano.zero_shot import quick_values, score_set

GROUPS: dict[str, str] = {family.category: family.kind for family in FAMILIES.values()}
COLUMNS = (
    "stage", "step", "caption", "global", "dense", "text",
    "val_image", "val_image_object", "val_image_texture", "val_pixel",
)  # fmt: skip


def train_nano(cfg: dict[str, Any], folder: Path, tell: Callable[[str], None]) -> Path:
    """Trains as `conf/nano.yaml` says, in `folder`; returns the weights file.

    Leaves `text.pt`, `image.pt` (state to resume from), `curve.csv` (losses and validation), `text_gate.json`,
    `nano.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seed, options = cfg["seed"], cfg["image"]
    check_distil(options["distil"])
    network = load_teacher()
    model = new_model(seed, network, width=cfg["width"], layers=cfg["layers"])
    directions = _text_stage(model, cfg, folder, tell)
    root, tuned = Path(cfg["pool"]).expanduser(), options["tune_stem"]
    views = fresh_views(model, network, root, seed=seed, twins=cfg["twins"], tell=tell)
    count = min(cfg["crops"], FACTS) if tuned else cfg["crops"]
    crops = open_crops(root / f"crops_seed{seed}_{cfg['twins']}_{count}", views, count=count, tell=tell)
    fresh = views if tuned else None
    stage = ImageStage(model, crops, directions, seed=seed, distil=options["distil"], fresh=fresh)
    _image_stage(stage, cfg, folder, tell)
    trained: Any = stage.averaged()
    pass_gate(text.gate(trained, directions, seed=cfg["seed"]), folder, tell, accuracy="noun_accuracy")
    path = folder / "nano.safetensors"
    save_model(trained, token_rows(), path)
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


def fresh_views(
    model: Any, network: nn.Module, root: Path, *, seed: int, twins: int, tell: Callable[[str], None]
) -> FreshViews:
    """What draws views of the pool below `root`, which is drawn first where it is not there."""
    pool = open_pool(root, seed=seed, each=twins, tell=tell)
    return FreshViews(pool, model, network, seed=seed, side=ARCHITECTURE["vision_cfg"]["image_size"])


def _image_stage(stage: ImageStage, cfg: dict[str, Any], folder: Path, tell: Callable[[str], None]) -> None:
    options = cfg["image"]
    plan = Plan(
        title="image",
        number=0,
        steps=options["steps"],
        lr=options["lr"],
        images=options["batch"],
        every=cfg["every"],
        validate_every=cfg["validate_every"],
        kept=folder / "image.pt",
        curve=folder / "curve.csv",
        columns=COLUMNS,
    )
    source = ProceduralSource(val_count=cfg["val_count"])

    def validate() -> dict[str, float]:
        """Zero-shot, the averaged weights on fresh pictures of the training families."""
        return quick_values(score_set(as_backbone(stage.averaged()), source, side="val"), GROUPS)

    train_stage(stage, plan, lambda number: stage.draw(number, options["batch"]), validate, tell)
