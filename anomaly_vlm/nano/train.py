"""`make nano`: text tower, pool, image tower in two resolutions, file. An interrupted run goes on where it stopped."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anomaly_vlm.data.procedural import ProceduralSource
from anomaly_vlm.data.procedural.families import FAMILIES
from anomaly_vlm.errors import UserError
from anomaly_vlm.nano import text
from anomaly_vlm.nano.image import ImageStage
from anomaly_vlm.nano.model import as_backbone, new_model, save_model
from anomaly_vlm.nano.pool import open_pool
from anomaly_vlm.nano.views import draw_views
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
    (folder / "text_gate.json").write_text(json.dumps(facts, indent=1) + "\n")
    tell("text gate: " + ", ".join(f"{name} {value:.3f}" for name, value in facts.items()))
    if not facts["passed"]:
        raise UserError(
            f"the text tower did not pass its gate (noun accuracy {facts['noun_accuracy']:.2f}): give text.steps more"
        )
    _keep(model.state_dict(), kept)
    return directions


def _image_stage(
    stage: ImageStage, pool: Any, cfg: dict[str, Any], options: dict[str, Any], number: int, folder: Path, tell: Any
) -> None:
    """One resolution, with its own learning-rate cycle."""
    kept = folder / f"stage_{number}.pt"
    pairs, side = options["batch"] // 2, options["side"]
    steps = math.ceil(options["images"] / (2 * pairs))
    optimizer = torch.optim.AdamW(stage.parameters, lr=options["lr"], betas=(0.9, 0.98), weight_decay=0.05)
    warm = min(40, steps // 10 + 1)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

    done = 0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        stage.load_state_dict(state["stage"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    elif number:
        stage.backbone.visual.load_state_dict(stage.average.state_dict())
    started, first = time.monotonic(), done
    sums: dict[str, list[float]] = {}
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = options["lr"] * rate(step)
        draw = step + 10_000_000 * (number + 1)
        views = draw_views(pool, seed=cfg["seed"], step=draw, pairs=pairs, side=side, patch=stage.backbone.patch_size)
        values = stage.losses(views, torch.Generator().manual_seed(draw))
        total = stage.total(values)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters, 1.0)
        optimizer.step()
        stage.follow(min(0.999, (step + 1) / (step + 10)))
        for name, value in values.items():
            sums.setdefault(name, []).append(value.item())
        last = step + 1 == steps
        if (step + 1) % cfg["every"] == 0 or last:
            speed = (step + 1 - first) * 2 * pairs / (time.monotonic() - started)
            left = (steps - step - 1) * 2 * pairs / speed / 60
            means = {name: sum(each) / len(each) for name, each in sorted(sums.items())}
            tell(
                f"{side} px, step {step + 1}/{steps}: "
                + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                + f"; {speed:.0f} images/s, {left:.0f} min left"
            )
            row = {"stage": number, "step": step + 1, **{name: round(value, 4) for name, value in means.items()}}
            if (step + 1) % cfg["validate_every"] == 0 or last:
                row |= {f"val_{name}": round(value, 2) for name, value in _validate(stage, side, cfg).items()}
                tell("validation: " + ", ".join(f"{k[4:]} {v}" for k, v in row.items() if k.startswith("val_")))
            _append(folder / "curve.csv", row)
            sums = {}
            _keep({"stage": stage.state_dict(), "optimizer": optimizer.state_dict(), "done": step + 1}, kept)


def _validate(stage: ImageStage, side: int, cfg: dict[str, Any]) -> dict[str, float]:
    """The averaged weights on fresh pictures of the training families."""
    visual = stage.backbone.visual
    stage.backbone.visual = stage.average
    try:
        source = ProceduralSource(val_count=cfg["val_count"])
        return quick_values(score_set(stage.backbone, source, side="val", size=side), GROUPS)
    finally:
        stage.backbone.visual = visual


def _keep(state: Any, path: Path) -> None:
    """Writes beside and renames, so that an interrupted write leaves the last state."""
    fresh = path.with_suffix(".tmp")
    torch.save(state, fresh)
    fresh.replace(path)


COLUMNS = (
    "stage", "step", "patches", "dice", "state", "rank", "caption", "material", "windows",
    "val_image", "val_image_object", "val_image_texture", "val_pixel",
)  # fmt: skip


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
