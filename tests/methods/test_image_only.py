"""Training without pixel masks: `loss=image_only`, for every method whose loss has terms of whole images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.groups import choices

ABLE = [name.removeprefix("image_only/") for name in choices("loss") if name.startswith("image_only/")]
WORDS = {"filo": ["method.mmci.kernels=[[1,1],[3,3]]"]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "lids"
    random = np.random.default_rng(0)
    for folder, count in (("good", 6), ("dent", 4), ("inbox", 2)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")
    return root


@pytest.mark.parametrize("name", ABLE)
def test_a_sorted_folder_is_enough(name: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"method={name}", "loss=image_only", "dataset=own", f"dataset.test.root={parts}", "split=0.5", "seed=0"]
    small = ["backbone=tiny_random", "image_size=64", "epochs=1", "trainer=cpu", "callbacks.progress=none"]
    more = ["pictures.per_category=0", "compare_untrained=false", "cache.tokens=off", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", *words, *small, *more, *WORDS.get(name, [])]) == 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "trained on lids (its share by split=0.5:0:0.5, seed 0; 5 images)" in record["data"]
    assert "tested on lids" in record["data"]
    found = record["results"]
    assert found["object/image_auroc"] is not None and found["object/pixel_auroc"] is None


def test_the_pixel_terms_and_nothing_else_are_gone() -> None:
    for name in ABLE:
        whole, alone = (compose([f"method={name}", *more]).loss for more in ([], ["loss=image_only"]))
        assert set(alone) <= set(whole) and all(alone[term] == whole[term] for term in alone)
        gone = {term.split("_map")[0] for term in set(whole) - set(alone)}
        assert gone <= {"focal", "dice", *(["texts"] if name == "aaclip" else [])} and "dice" in gone


@pytest.mark.parametrize("name", sorted(set(choices("method")) - set(ABLE)))
def test_others_say_in_one_line_that_they_cannot(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", f"method={name}", "loss=image_only"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"loss=image_only: {name} learns from pixel masks" in error
