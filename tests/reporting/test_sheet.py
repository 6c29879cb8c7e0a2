"""Contact sheets of drawn and of stored samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.data.drawn.roads import ProceduralRoadSource
from anomaly_vlm.data.types import UNKNOWN, Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.pictures import OUTLINE
from anomaly_vlm.reporting.sheet import CLASSES, GAP, SEAM, SIDE, contact_sheet, read, spread


def test_drawn_samples(tmp_path):
    samples = ProceduralSource(test_count=24, size=64).samples("test")
    contact_sheet(samples, tmp_path / "new" / "sheet.png", columns=4, limit=10)
    height, width, _ = np.asarray(Image.open(tmp_path / "new" / "sheet.png")).shape
    assert width == 4 * (2 * SIDE + SEAM + 2 * GAP) + GAP and height > 3 * SIDE


def test_stored_sample_has_its_mask_outlined_on_the_right_half_only(tmp_path):
    Image.new("RGB", (64, 64), (10, 200, 10)).save(tmp_path / "image.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 16:32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    sample = Sample(str(tmp_path / "image.png"), "screw", 1, (str(tmp_path / "mask.png"),), defect="bent")
    contact_sheet([sample], tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    left, right = (pixels[GAP : GAP + SIDE, start : start + SIDE] for start in (GAP, GAP + SIDE + SEAM))
    marked = (right == OUTLINE).all(axis=2)
    assert (left == (10, 200, 10)).all() and marked.any() and (right[~marked] == (10, 200, 10)).all()
    rows, columns = np.nonzero(marked)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 32, 63)


def test_images_without_masks_stand_there_once(tmp_path):
    for i in range(13):
        Image.new("RGB", (64, 64), (10, 200, 10)).save(tmp_path / f"{i}.png")
    samples = [Sample(str(tmp_path / f"{i}.png"), "screw", i % 2, kind="image") for i in range(13)]
    contact_sheet(samples, tmp_path / "sheet.png")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[1] == 12 * (SIDE + 2 * GAP) + GAP


def test_class_labels_are_shown_in_colours_at_the_scenes_own_shape():
    (sample,) = ProceduralRoadSource(test_count=1, height=64, width=128).samples("test")
    image, labels = read(sample)
    assert image.size == labels.size == (2 * SIDE, SIDE)
    shown = {tuple(colour) for colour in np.asarray(labels).reshape(-1, 3)}
    present = np.unique(sample.drawing.draw().mask)
    assert OUTLINE in shown and UNKNOWN in present
    assert shown <= {CLASSES[label] for label in present if label < len(CLASSES)} | {OUTLINE, (0, 0, 0)}


def test_void_is_grey_and_anomalies_are_outlined(tmp_path):
    Image.new("RGB", (96, 48), (10, 200, 10)).save(tmp_path / "image.png")
    labels = np.zeros((48, 96), np.uint8)
    labels[:, :10], labels[20:30, 40:60] = 7, 1
    Image.fromarray(labels).save(tmp_path / "labels.png")
    table = tuple({0: 0, 1: 1}.get(value, 255) for value in range(256))
    sample = Sample(str(tmp_path / "image.png"), "road", 1, (str(tmp_path / "labels.png"),), lookup=table)
    pixels = np.asarray(read(sample)[1])
    assert (pixels[:, 0] == 90).all()
    assert (pixels == OUTLINE).all(axis=2).sum() > 50
    assert (pixels[60, 130] == (10, 200, 10)).all()  # inside the object nothing is painted over


def test_the_choice_takes_turns_between_categories_and_defects():
    samples = [
        Sample(f"{c}{d}{i}", c, int(d != "good"), defect=d) for c in "ab" for d in ("good", "x") for i in range(9)
    ]
    chosen = spread(samples, 8)
    assert Counter((s.category, s.defect) for s in chosen) == {(c, d): 2 for c in "ab" for d in ("good", "x")}
    assert [s.path for s in chosen] == sorted(s.path for s in chosen)
    assert [s.path for s in chosen if s.path.startswith("ax")] == ["ax0", "ax4"]  # spread over the nine of them
    few = spread(samples[:1] + samples[9:], 8)  # one of a kind leaves its turns to the others
    assert [s.path for s in few if s.path.startswith("a")] == ["agood0", "ax0", "ax3", "ax6"]


def test_nothing_to_show(tmp_path):
    with pytest.raises(UserError, match="no sample to show"):
        contact_sheet([], tmp_path / "sheet.png")
