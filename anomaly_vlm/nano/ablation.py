"""What each choice of the nano CLIP's recipe brings, at one budget of CPU time: `make bench BENCH=nano`.

Every variant trains on one thread for the same CPU seconds and is then asked what `probes` asks.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.errors import UserError
from anomaly_vlm.nano import text
from anomaly_vlm.nano.crops import Crops, FreshViews, open_crops
from anomaly_vlm.nano.image import ImageStage
from anomaly_vlm.nano.loop import Budgeted
from anomaly_vlm.nano.model import as_backbone, new_model
from anomaly_vlm.nano.probes import VALUES, Pictures, asked, read
from anomaly_vlm.nano.teacher import load_teacher
from anomaly_vlm.nano.train import fresh_views
from anomaly_vlm.nano.words import NOUNS
from anomaly_vlm.reporting.console import say, show
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.devices import flush_denormals

LEFT_OUT = ("marble", "knit", "brushed_metal", "blister_pack", "key", "toothbrush")  # probes are tested on these
TWINS, CROPS = 50, 4000  # a smaller pool than the shipped weights saw: the budget is less than two rounds of it
TURNS = 10
COLUMNS = (
    "variant",
    "steps",
    *(f"{probe}_{value}" for probe in ("linear", "mlp") for value in VALUES),
    "zero_shot_image_auroc",
)


@dataclass(frozen=True)
class Variant:
    """A recipe. tower: `width` and `layers`. distil: see `ImageStage`. tune_stem: also train the stem. trained: at all."""

    tower: dict[str, int] = field(default_factory=dict)
    distil: tuple[str, ...] = ("global", "dense")
    tune_stem: bool = False
    trained: bool = True


VARIANTS = {
    "untrained blocks": Variant(trained=False),
    "as shipped": Variant(),
    "dense loss off": Variant(distil=("global",)),
    "distillation off": Variant(distil=()),
    "stem tuned": Variant(tune_stem=True),
    "width 192": Variant(tower={"width": 192}),
}


def run(folder: Path, *, quick: bool, seconds: str = "120") -> None:
    """Prints the table, writes `nano.csv` into `folder`.

    Args:
        folder: Of the table.
        quick: 10 CPU seconds, few pictures and a text tower that has learned little: whether it runs.
        seconds: CPU seconds for each variant's image tower.

    Raises:
        UserError: `seconds` is no number above 0, or the teacher is not installed.
    """
    try:
        budget = 10.0 if quick else float(seconds)
    except ValueError:
        budget = 0.0
    if not 0 < budget < float("inf"):
        raise UserError(f"seconds is {seconds}: give a number of CPU seconds for each variant")
    flush_denormals()
    write(folder, compare(Trial.prepared(quick=quick), VARIANTS, budget), budget)


def compare(trial: Trial, variants: Mapping[str, Variant], budget: float) -> list[tuple[str, ...]]:
    """Trains the variants in turns; their rows: name, steps, values."""
    stages = {name: trial.stage(variant) for name, variant in variants.items()}
    steps = train_in_turns(stages, trial, budget, still={name for name, one in variants.items() if not one.trained})
    lines = []
    for name, stage in stages.items():
        values = trial.values(stage, variants[name])
        lines.append((name, str(steps[name]), *(f"{values[column]:.1f}" for column in COLUMNS[2:])))
        say("  ".join(lines[-1]))
    return lines


def write(folder: Path, lines: list[tuple[str, ...]], budget: float) -> None:
    """The table, printed and as `nano.csv`."""
    table = Table(title=f"nano CLIP, {budget:g} CPU seconds on one thread, percent", title_justify="left")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "))
    for line in lines:
        table.add_row(*line)
    show(table)
    with (folder / "nano.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    say(f"written: {folder / 'nano.csv'}")


def train_in_turns(
    stages: Mapping[str, ImageStage], trial: Trial, seconds: float, *, still: Collection[str]
) -> dict[str, int]:
    """Trains each variant for `seconds` of CPU time on one thread; all but `still`; returns the steps that each took.

    They take turns of a tenth of it, so that whatever else the machine does slows all of them alike.
    """
    trainings = {
        name: Budgeted(stage, partial(stage.draw, count=trial.batch), lr=trial.lr, seconds=seconds)
        for name, stage in stages.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(1, TURNS + 1):
            for name, training in trainings.items():
                if name not in still:
                    training.spend(seconds * turn / TURNS)
            say(f"turn {turn}/{TURNS}: " + ", ".join(f"{name} {each.steps}" for name, each in trainings.items()))
    finally:
        torch.set_num_threads(threads)
    return {name: each.steps for name, each in trainings.items()}


@dataclass
class Trial:
    """What all variants share: teacher, taught text tower, crops, and the pictures that they are asked about.

    Attributes:
        network: The teacher.
        words: State of everything but the image tower after the text stage.
        directions: Of the text stage.
        crops: Behind the teacher's stem.
        fresh: Draws views for a stem that is tuned.
        batch: Views of a step.
        lr: Of the image tower.
        sources: Pictures to read by name: `train` and `test` of the probes, `fresh` of the zero-shot score.
        pictures: They behind the teacher's stem.
        seed: Of everything.
    """

    network: nn.Module
    words: dict[str, Tensor]
    directions: text.Directions
    crops: Crops
    fresh: FreshViews
    batch: int
    lr: float
    sources: dict[str, tuple[ProceduralSource, str]]
    pictures: dict[str, Pictures]
    seed: int

    @classmethod
    def prepared(cls, *, quick: bool) -> Trial:
        """Loads the teacher, teaches the text tower, makes pool and crops where they are not there yet."""
        cfg = compose([], config="nano")
        seed, root = int(cfg.seed), Path(cfg.pool).expanduser()
        twins, count = (1, 64) if quick else (TWINS, CROPS)
        network = load_teacher()
        model: Any = new_model(seed, network)
        views = fresh_views(model, network, root, seed=seed, twins=twins, tell=say)
        crops = open_crops(root / f"crops_seed{seed}_{twins}_{count}", views, count=count, tell=say)
        directions = text.train(
            model, seed=seed, steps=20 if quick else cfg.text.steps, batch=cfg.text.batch, lr=cfg.text.lr, tell=say
        )
        words = {key: value for key, value in model.state_dict().items() if not key.startswith("visual.")}
        others = sorted(set(NOUNS) - set(LEFT_OUT))
        train, test, fresh = (72, 24, 84) if quick else (720, 300, 504)
        sources = {
            "train": (ProceduralSource(train_count=train, categories=others), "train"),
            "test": (ProceduralSource(val_count=test, categories=LEFT_OUT), "val"),
            "fresh": (ProceduralSource(val_count=fresh), "val"),
        }
        pictures = {name: read(as_backbone(model), *source) for name, source in sources.items()}
        image = cfg.image
        return cls(network, words, directions, crops, views, image.batch, image.lr, sources, pictures, seed)

    def stage(self, variant: Variant) -> ImageStage:
        """A variant as its training starts."""
        model: Any = new_model(self.seed, self.network, **variant.tower)
        model.load_state_dict({**model.state_dict(), **self.words})
        fresh = self.fresh if variant.tune_stem else None
        return ImageStage(model, self.crops, self.directions, seed=self.seed, distil=variant.distil, fresh=fresh)

    def values(self, stage: ImageStage, variant: Variant) -> dict[str, float]:
        """Values of a trained variant in percent, see `asked`."""
        backbone, pictures = as_backbone(stage.averaged()), self.pictures
        if variant.tune_stem:
            pictures = {name: read(backbone, *source) for name, source in self.sources.items()}
        return asked(backbone, pictures, self.seed)
