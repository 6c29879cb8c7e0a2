"""AnoVL through the command line: adaptation under an evaluation, images that are not square, heat maps close to 0.5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from tests.e2e.conftest import results

QUICK = [
    "method=anovl",
    "backbone=tiny_random",
    "backbone.architecture.vision_cfg.layers=2",
    "backbone.layers=[1,2]",
    "image_size=56",
    "method.adaptation.steps=2",
    "callbacks.progress=none",
    "trainer=cpu",
]
VISA = ["pixels.fit=short_side", "method.tiling=auto", "method.augment_views=false"]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*the (pixel|image) values.*undefined.*"),
]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two normal and two dented pictures, wide and high, the dents with masks."""
    root = tmp_path / "parts"
    for folder in ("good", "dent", "ground_truth/dent"):
        (root / folder).mkdir(parents=True)
    for i, (height, width) in enumerate(((60, 84), (90, 64), (60, 84), (60, 60))):
        pixels = np.random.default_rng(i).integers(90, 110, (height, width, 3), dtype=np.uint8)
        if i >= 2:
            mask = np.zeros((height, width), np.uint8)
            pixels[10:30, 10:30], mask[10:30, 10:30] = 250, 255
            Image.fromarray(mask).save(root / f"ground_truth/dent/{i}.png")
        Image.fromarray(pixels).save(root / ("dent" if i >= 2 else "good") / f"{i}.png")
    return root


def of_folder(parts: Path) -> list[str]:
    return ["source@dataset.test=folder", f"dataset.test.root={parts}"]


def test_images_keep_their_shapes_whatever_the_state_of_the_optimiser(parts: Path) -> None:
    for state in ("fresh", "published"):
        words = [
            *QUICK,
            *VISA,
            f"method.adaptation.optimizer_state={state}",
            "eval_batch_size=1",
            "pictures.per_category=1",
        ]
        assert main(["train", *words, *of_folder(parts), f"output_dir={state}"]) == 0
        found = results(Path(state))
        assert 0 <= found["mean/pixel_auroc"] <= 1 and 0 <= found["mean/image_auroc"] <= 1
    scores = [(Path(state) / "images.csv").read_text() for state in ("fresh", "published")]
    assert scores[0] == scores[1], "the adaptation changes maps alone"


def test_shapes_that_do_not_go_together_are_rejected(parts: Path, refused: Callable[[list[str]], str]) -> None:
    told = refused(["evaluate", *QUICK, *VISA, *of_folder(parts)])
    assert "in one batch: set eval_batch_size=1" in told
    told = refused(["evaluate", *QUICK, "pixels.fit=short_side", "eval_batch_size=1", *of_folder(parts)])
    assert "method.tiling=off" in told and "method.tiling=auto" in told


def test_predicted_heat_maps_show_something(parts: Path) -> None:
    assert main(["predict", *QUICK, "output_dir=said", f"images={parts / 'dent'}", "category=gear"]) == 0
    pictures = sorted(Path("said/pictures").glob("*.jpg"))
    assert len(pictures) == 2
    for path in pictures:
        panel = np.asarray(Image.open(path).convert("RGB")).astype(int)
        bare = panel[60:-20, -240:-20]  # the map alone, the last of the panel
        assert np.ptp(bare, axis=(0, 1)).min() > 100, "from the darkest blue to the darkest red"
