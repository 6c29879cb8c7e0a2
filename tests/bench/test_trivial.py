"""Trivial baselines: they find what is trivial, and not the defects of the held-out families."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anomaly_vlm.bench import trivial
from anomaly_vlm.data.types import Drawn


class Chequers:
    """A grey chequerboard, with or without one bright square that fits no field."""

    def __init__(self, seed: int, odd: bool, size: int = 128) -> None:
        self.seed, self.odd, self.size = seed, odd, size

    def draw(self) -> Drawn:
        noise = np.random.default_rng(self.seed).normal(0, 3, (self.size, self.size, 3))
        y, x = np.indices((self.size, self.size))
        image = 90 + 40.0 * ((x // 8 + y // 8) % 2)[..., None] + noise
        mask = np.zeros((self.size, self.size), bool)
        if self.odd:
            mask[self.size * 2 // 5 :, self.size // 2 :][: self.size // 8, : self.size // 7] = True
            image[mask] = 230
        return Drawn(np.clip(image, 0, 255).astype(np.uint8), mask, "chequers")


@pytest.mark.parametrize("name", trivial.MAPS)
@pytest.mark.parametrize("size", [64, 100, 128])
def test_maps_are_finite_and_highest_on_the_odd_square(name, size):
    drawn = Chequers(0, True, size).draw()
    heat = trivial.MAPS[name](drawn.image)
    assert heat.shape == (size, size) and np.isfinite(heat).all()
    assert heat[drawn.mask].mean() > 1.5 * heat[~drawn.mask].mean()


@pytest.mark.parametrize("name", trivial.MAPS)
def test_a_flat_image_has_a_flat_map(name):
    heat = trivial.MAPS[name](np.full((64, 64, 3), 120, np.uint8))
    assert np.allclose(heat, heat[0, 0], atol=1e-4)


def test_scores_of_a_known_map():
    heat = np.zeros((10, 10))
    heat[0, :2] = 3, 1
    assert trivial.image_scores(heat) == {"max": 3.0, "top 2 %": 2.0}


def test_table_of_an_easy_set_is_perfect():
    rows = trivial.evaluate(
        {name: [(Chequers(i + k, i % 2 == 1), i % 2) for i in range(6)] for k, name in enumerate("ab")}
    )
    assert [row["map"] for row in rows] == list(trivial.MAPS)
    for row in rows:
        assert row["image_top"] == row["image_top_mean"] == row["image_max b"] == 100
        assert row["pixel"] > 90 and row["pixel_mean"] > 90


@pytest.mark.slow
def test_held_out_families_are_not_trivial(tmp_path, capsys):
    """The frozen difficulty: no trivial baseline passes 62 image and 78 pixel AUROC, pooled or as a mean."""
    trivial.run(tmp_path, quick=False)
    assert "600 images" in capsys.readouterr().out
    for row in json.loads((tmp_path / "trivial.json").read_text()):
        assert (
            max(row[f"image_{score}{over}"] for score in ("max", "top") for over in ("", "_mean"))
            <= trivial.IMAGE_LIMIT
        )
        assert max(row["pixel"], row["pixel_mean"]) <= trivial.PIXEL_LIMIT
