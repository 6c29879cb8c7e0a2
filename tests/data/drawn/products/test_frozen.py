"""The benchmark does not move: the integers behind its pictures, and the pixels of a few, are stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from .freeze import FOLDER, digest, keys, name, stored


def test_the_drawn_integers_are_those_that_were_frozen():
    digests = json.loads((FOLDER / "digests.json").read_text())
    assert {name(drawing): digest(drawing) for drawing in keys()} == digests


@pytest.mark.parametrize("drawing", stored(), ids=name)
def test_pixels_agree_within_two_grey_levels(drawing):
    drawn = drawing.draw()
    with Image.open(FOLDER / f"{name(drawing)}.png") as file:
        kept = np.asarray(file).astype(int)
    assert np.abs(drawn.image - kept[..., :3]).max() <= 2
    assert (
        drawn.mask != (kept[..., 3] > 0)
    ).mean() < 0.001  # a mask may flip a pixel where the change is at the threshold


def test_stored_pictures_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200_000
