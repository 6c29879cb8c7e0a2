"""Which images are shown, and what a panel shows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_vlm.methods.base.prediction import ImageRow
from anomaly_vlm.reporting.pictures import BAND, GAP, TILE, choose, colour_map, outline, save_panel, tile_size


def row(index: int, category: str, label: int, score: float) -> ImageRow:
    return ImageRow(index, f"{category}/{index}.png", category, label, score)


def test_choose_takes_hits_false_alarms_and_misses() -> None:
    rows = [row(0, "a", 0, 0.9), row(1, "a", 0, 0.1), row(2, "a", 1, 0.8), row(3, "a", 1, 0.2), row(4, "b", 0, 0.5)]
    assert [c.row.index for c in choose(rows, per_category=3)] == [2, 0, 3, 4]
    assert [c.row.index for c in choose(rows, per_category=9)] == [2, 0, 3, 1, 4]
    reasons = [c.why for c in choose(rows[:4], per_category=4)]
    assert reasons == ["anomalous, highest score", "worst false alarm", "worst miss", "normal, lowest score"]
    decided = [c.why for c in choose(rows[:4], per_category=4, limits={"a": 0.95})]
    assert decided[:3] == ["anomalous, highest score", "normal, highest score", "worst miss"]
    unlabelled = [row(i, "c", -1, i / 10) for i in range(3)]
    assert [c.row.index for c in choose(unlabelled, per_category=2)] == [2, 1]
    assert choose(unlabelled, per_category=2)[1].why == "unlabelled, 2nd highest score"


def test_colour_map_runs_from_blue_to_red() -> None:
    low, high = colour_map(np.array([0.0, 1.0]))
    assert low[2] > low[0] and high[0] > high[2]
    assert colour_map(np.zeros((2, 3))).shape == (2, 3, 3)


def test_outline_is_the_inner_border() -> None:
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    assert outline(mask).sum() == 8 and not outline(mask)[2, 2]


def test_panel_shows_input_truth_overlay_and_map(tmp_path: Path) -> None:
    image = np.full((32, 32, 3), 200, np.uint8)
    heat = np.linspace(0, 1, 32 * 32).reshape(32, 32)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16], mask[0, :] = 1, 255
    save_panel(tmp_path / "x" / "p.png", image, heat, mask, score=0.25, title="t" * 400, scale=(0.0, 1.0))
    with Image.open(tmp_path / "x" / "p.png") as file:
        panel = np.asarray(file)
    assert panel.shape == (TILE + 2 * BAND + GAP, 4 * (TILE + GAP) + GAP, 3)
    tiles = [panel[2 * BAND : 2 * BAND + TILE, GAP + i * (TILE + GAP) :][:, :TILE] for i in range(4)]
    assert (tiles[0] == 200).all()
    assert (tiles[1][96, 96] > 250).all() and (tiles[1][200, 200] == 0).all()
    assert tiles[3][5, 5][2] > tiles[3][5, 5][0]
    assert (tiles[2] == (255, 60, 60)).all(axis=-1).any()

    save_panel(tmp_path / "q.png", image, np.zeros((32, 32)), None, score=0.0, title="flat", scale=(0.0, 0.0))
    with Image.open(tmp_path / "q.png") as flat:
        assert flat.width == 3 * (TILE + GAP) + GAP


def test_a_jpeg_shows_what_the_png_shows(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    heat = np.zeros((12, 16))
    heat[4:8, 5:9] = 1.0
    for name in ("a.png", "a.jpg"):
        save_panel(tmp_path / name, image, heat, None, score=1.0, title="part", scale=(0.0, 1.0), contour=0.5)
    with Image.open(tmp_path / "a.png") as exact, Image.open(tmp_path / "a.jpg") as small:
        assert small.format == "JPEG" and exact.size == small.size
        assert np.abs(np.asarray(exact, np.float32) - np.asarray(small, np.float32)).mean() < 4
    assert (tmp_path / "a.jpg").stat().st_size < 0.6 * (tmp_path / "a.png").stat().st_size


def test_a_panel_has_the_pictures_own_shape_and_a_contour(tmp_path: Path) -> None:
    heat = np.zeros((10, 10))
    heat[4:6, 4:6] = 2.0
    image = np.full((100, 400, 3), 90, np.uint8)
    save_panel(tmp_path / "c.png", image, heat, None, score=1.0, title="", scale=(0.5, 1.0), blend="heat", contour=1.0)
    with Image.open(tmp_path / "c.png") as file:
        panel = np.asarray(file)
    width, height = tile_size(400, 100)
    assert width == 4 * height and panel.shape == (height + 2 * BAND + GAP, 3 * (width + GAP) + GAP, 3)
    overlay = panel[2 * BAND : 2 * BAND + height, 2 * GAP + width :][:, :width]
    line = (overlay == 255).all(axis=-1)
    assert line.any() and not line[: height // 4].any() and not line[:, : width // 4].any()
    red, corner = overlay[height // 2, width // 2].astype(int), overlay[0, 0]
    assert red[0] > red[1] + 50 and (corner == 90).all()  # clear where it is as on any good part
