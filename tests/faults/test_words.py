"""Whatever is typed and whatever files are called: a result that is shown harmlessly, or one line."""

from __future__ import annotations

import csv
import random
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.conftest import TINY, TRAIN, Outcome, Server
from tests.faults.test_kills import SEED
from tests.support.fuzz import ODD_WORDS

pytestmark = pytest.mark.faults
# fmt: off
NAMES = [
    "=1+1", "@SUM(A1)", "-x", "+x", "[/foo]", "[bold red]x[/]", "mean", "good", "a,b", "a;b", 'a"b', "a'b", "a b", " ",
    "a\nb", "a\r\nb", "\x1b[31mred", "\x1b]0;title\x07", "\t", "\u202eabc", "\u2028", "%s %d", "{0}", "${name}", "$(ls)",
    "ä" * 100, "x" * 240, "日本語", "~", "#", "?", "*", "NUL", "\udcff", "🙂", "a|b", "<b>x</b>", "\\", "&amp;",
]
# fmt: on
WINCLIP = ["method=winclip", *TINY[1:6], "callbacks.progress=none"]


def picture(path: Path, seed: int, *, defect: bool = False) -> None:
    pixels = np.random.default_rng(seed).integers(90, 120, (32, 32, 3), dtype=np.uint8)
    if defect:
        pixels[8:16, 8:16] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def check_harmless(outcome: Outcome, folder: Path) -> None:
    """Nothing that steers a terminal, a spreadsheet or a table."""
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    steering = {c for c in outcome.out + outcome.err if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert steering <= {"\n"}, steering
    for table in folder.rglob("*.csv"):
        if "logs" in table.parts:
            continue
        head, *rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
        assert rows and all(len(row) == len(head) for row in rows), table
        for cell in (cell for row in rows for cell in row):
            number = cell.lstrip("+-").replace(".", "", 1).replace("e-", "", 1).isdigit()
            assert number or not cell.startswith(("=", "+", "-", "@", "\t")), (table, cell)


def test_hostile_file_names(server: Server, tmp_path: Path, counted: Callable[..., None]) -> None:
    for number, name in enumerate(NAMES):
        picture(tmp_path / "parts" / "good" / f"{name}.png"[-250:], number)
        picture(tmp_path / "parts" / name / "1.png", number, defect=True) if name != "good" else None
    words = ["predict", *WINCLIP, f"images={tmp_path / 'parts'}", "output_dir=predicted"]
    check_harmless(server(words, tmp_path), tmp_path / "predicted")
    rows = (tmp_path / "predicted" / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 * len(NAMES)  # one head, and `good` is no defect
    words = ["evaluate", *WINCLIP, "dataset=folder", f"dataset.test.root={tmp_path / 'parts'}", "output_dir=evaluated"]
    check_harmless(server(words, tmp_path), tmp_path / "evaluated")
    check_harmless(server(["report", "run=evaluated"], tmp_path), tmp_path / "evaluated")
    for _ in NAMES:
        counted("hostile names")


def test_hostile_categories(server: Server, tmp_path: Path, counted: Callable[..., None]) -> None:
    refused = [name for name in NAMES if name == "mean" or not name.strip()]  # in one line
    names = [name for name in NAMES if name not in refused]
    for number, name in enumerate(names):
        for kind, defect in (("test/good", False), ("test/dent", True)):
            picture(tmp_path / "parts" / name / kind / "1.png", number, defect=defect)
        mask = tmp_path / "parts" / name / "ground_truth" / "dent" / "1_mask.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((8, 16), (8, 16)))).save(mask)
    words = ["evaluate", *WINCLIP, "dataset=folder", f"dataset.test.root={tmp_path / 'parts'}", "output_dir=evaluated"]
    check_harmless(server([*words, "pictures.per_category=1"], tmp_path), tmp_path / "evaluated")
    table = (tmp_path / "evaluated" / "results.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) >= len(names)
    check_harmless(server(["report", "runs=."], tmp_path), tmp_path / "evaluated")
    for name in refused:
        picture(tmp_path / "refused" / name / "test" / "good" / "1.png", 0)
        picture(tmp_path / "refused" / name / "test" / "dent" / "1.png", 0)
        outcome = server([*words, f"dataset.test.root={tmp_path / 'refused'}"], tmp_path)
        assert outcome.status == 2 and "class_words" in outcome.line
        shutil.rmtree(tmp_path / "refused")
    for _ in NAMES:
        counted("hostile names")


# fmt: off
KEYS = [
    "seed", "epochs", "image_size", "batch_size", "eval_batch_size", "num_workers", "train_limit", "eval_limit", "shots",
    "method", "backbone", "dataset", "trainer", "optimizer", "scheduler", "loss", "logger", "callbacks", "selection",
    "optimizer.lr", "method.hsf.k", "method.prompts.depth", "backbone.layers", "dataset.test.size", "dataset.test.root",
    "checkpoint.every_steps", "pictures.per_category", "augment.mosaic", "trainer.max_epochs", "trainer.devices",
    "trainer.accumulate_grad_batches", "gradient_clip", "cache.tokens", "metrics", "nothing", "method.nothing", "trust",
    "tracking.group", "hydra.run.dir", "+new", "~seed", "source@dataset.val", "source@dataset.test", "output_dir",
]
GIVEN = [  # what has broken something before
    ["epochs=99999999999999999999"], ["num_workers=5000"], ["image_size=1"], ["batch_size=0"], ["backbone.layers=[1,1,1]"],
    ["seeds=[0,0]"], ["=1"], ["="], ["epochs"], ["--epochs", "3"], ["epochs=1", "epochs=2"], ["output_dir="],
    ["output_dir=a\nb"], ["category=" + "x" * 10_000], ["optimizer=[1]"], ["dataset.test=true"], ["dataset.name=${nothing}"],
    ["loss.image.kind=[]"],
]
# fmt: on


def test_odd_overrides(server: Server, tmp_path: Path, counted: Callable[..., None]) -> None:
    draw = random.Random(SEED)
    drawn = [[f"{draw.choice(KEYS)}={draw.choice(ODD_WORDS)}"] for _ in range(40)]
    short = [*TRAIN, "train_limit=1", "eval_limit=2", "epochs=1", "pictures.per_category=0"]
    for number, words in enumerate([*GIVEN, *drawn]):
        outcome = server([*short, f"output_dir=run{number}", *words], tmp_path)
        assert outcome.status in (0, 2), (words, outcome.status, outcome.err[-2000:])
        assert outcome.line if outcome.status else "Traceback" not in outcome.err, words
        counted("overrides")
