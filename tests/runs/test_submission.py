"""The submission of MVTec AD 2: names, types and sizes of the files, and the threshold by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.cli import main
from anomaly_vlm.runs.submission import Spread, write_map

tifffile = pytest.importorskip("tifffile")
WINCLIP = ["method=winclip", "backbone=tiny_random", "image_size=32", "trainer=cpu", "cache.tokens=off"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories with two good validation images and three private ones of 40 x 24 pixels each."""
    random = np.random.default_rng(0)
    for category in ("can", "rice"):
        names = {
            "validation/good": ["000_regular", "001_regular"],
            "test_private": ["000_regular", "001_regular"],
            "test_private_mixed": ["000_mixed"],
        }
        for place, stems in names.items():
            folder = tmp_path / "data" / category / place
            folder.mkdir(parents=True)
            for stem in stems:
                Image.fromarray(random.integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(folder / f"{stem}.png")
    return tmp_path / "data"


def test_a_submission_has_the_servers_form(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "submission"
    assert main(["submission", f"data={root}", *WINCLIP, f"output_dir={folder}"]) == 0
    maps = sorted(path.relative_to(folder / "anomaly_images").as_posix() for path in folder.rglob("*.tiff"))
    assert maps == [
        f"{category}/{name}.tiff"
        for category in ("can", "rice")
        for name in ("test_private/000_regular", "test_private/001_regular", "test_private_mixed/000_mixed")
    ]
    said = capfd.readouterr().out
    for name in maps:
        heat = tifffile.imread(folder / "anomaly_images" / name)
        assert heat.dtype == np.float16 and heat.shape == (24, 40)
        mask = np.asarray(Image.open((folder / "anomaly_images_thresholded" / name).with_suffix(".png")))
        assert mask.dtype == np.uint8 and mask.shape == (24, 40) and set(np.unique(mask)) <= {0, 255}
        listed = said.rpartition("thresholds: ")[2].splitlines()[0].split(", ")
        threshold = float(dict(entry.split() for entry in listed)[name.partition("/")[0]])
        surely = np.abs(heat.astype(np.float32) - threshold) > 1e-3
        assert np.array_equal((heat > threshold)[surely], (mask == 255)[surely])


def test_the_threshold_is_mean_plus_three_deviations() -> None:
    values, spread = np.random.default_rng(1).normal(2, 3, (5, 7, 11)).astype(np.float32), Spread()
    for part in values:
        spread.add(part)
    assert spread.above(3) == pytest.approx(values.mean() + 3 * values.std(), rel=1e-6)


def test_values_beyond_half_precision_are_cut(tmp_path: Path) -> None:
    write_map(tmp_path / "x.tiff", np.array([[1e9, -1e9, 0.5]], np.float32))
    assert tifffile.imread(tmp_path / "x.tiff").tolist() == [[65504.0, -65504.0, 0.5]]


@pytest.mark.parametrize(
    ("spoil", "said"), [("test_private", "has no CATEGORY/test_private"), ("validation", "no folder 'good'")]
)
def test_what_is_missing_is_reported(
    spoil: str, said: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    for category in root.iterdir():
        (category / spoil).rename(category / "other")
        if spoil == "test_private":
            (category / "test_private_mixed").rename(category / "another")
    assert main(["submission", f"data={root}", *WINCLIP, f"output_dir={tmp_path / 'run'}"]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["method=musc"], id="transductive"),
        pytest.param(["method=saa", "detector=file", "detector.missing=none"], id="detector"),
    ],
)
def test_what_a_method_needs_of_all_images_is_computed_first(words: list[str], root: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text('{"format": 1, "size": "relative", "images": {}}')
    tower = ["image_size=64"] if "method=saa" in words else WINCLIP[1:]
    given = [f"detector.path={tmp_path / 'boxes.json'}"] if "detector=file" in words else []
    folder = tmp_path / "submission"
    quiet = ["callbacks.progress=none", f"output_dir={folder}"]
    assert main(["submission", f"data={root}", *words, *tower, *given, *quiet]) == 0
    assert len(list(folder.rglob("*.tiff"))) == 6


def test_references_that_nothing_holds_are_reported(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert main(["submission", f"data={root}", *WINCLIP, "shots=2", f"output_dir={tmp_path / 'run'}"]) == 2
    assert "method=winclip with shots=2 has no reference images at prediction" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
