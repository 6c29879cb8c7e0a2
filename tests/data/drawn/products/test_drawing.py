"""Every picture of the drawn benchmark: label and mask agree, whatever the family, the defect and the size."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data.drawn.products import FAMILIES, KINDS, ProceduralDrawing, ProceduralSource

COMBINATIONS = [(name, defect) for name, family in FAMILIES.items() for defect in family.defects]


def drawing(family: str, defect: str, number: int = 0, size: int = 64) -> ProceduralDrawing:
    side = "test" if FAMILIES[family].side == "test" else "val"
    return ProceduralDrawing(0, side, family, number, defect, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_defect_of_a_family_has_a_mask_where_the_picture_changed(family):
    for number, defect in enumerate(FAMILIES[family].defects):
        damaged, normal = (d.draw() for d in (drawing(family, defect, number), drawing(family, "good", number)))
        assert damaged.image.shape == (64, 64, 3) and damaged.image.dtype == np.uint8
        assert damaged.mask.shape == (64, 64) and damaged.mask.dtype == bool
        assert damaged.mask.any() and not normal.mask.any()
        assert damaged.mask.mean() < 0.2
        difference = np.abs(damaged.image.astype(int) - normal.image).max(axis=2)
        inside, outside = difference[damaged.mask].mean(), difference[~damaged.mask].mean()
        assert inside > 8 and inside > 3 * outside, defect


@pytest.mark.parametrize("family", FAMILIES)
def test_normal_pictures_vary(family):
    first, second = (drawing(family, "good", number).draw().image.astype(int) for number in (10, 11))
    assert np.abs(first - second).mean() > 4
    assert first.std() > 4


def test_same_key_same_picture_in_any_order_and_process_copy():
    rows = [s.drawing for s in ProceduralSource(test_count=12, size=96).samples("test")]
    first = [d.draw() for d in rows]
    again = [d.draw() for d in pickle.loads(pickle.dumps(rows[::-1]))][::-1]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask) and a.caption == b.caption


@pytest.mark.parametrize("size", [64, 100, 256])
def test_other_sizes_show_the_same_scene(size):
    """Nearly always the same random numbers; then nearly the same pixels and masks after reduction to 32 x 32."""
    rows = [sample.drawing for sample in ProceduralSource(test_count=48).samples("test")]
    same = [here for here in rows if here.numbers() == replace(here, size=size).numbers()]
    assert len(same) >= 44
    for here in same:
        a, b = here.draw(), replace(here, size=size).draw()
        assert b.image.shape == (size, size, 3)
        assert np.abs(small(a.image) - small(b.image)).mean() < 10
        assert abs(a.mask.mean() - b.mask.mean()) < 0.02


def small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX), float)


def test_defects_are_small_on_average():
    areas = [s.drawing.draw().mask.mean() for s in ProceduralSource(size=64).samples("test") if s.label]
    assert 0.005 < np.mean(areas) < 0.05


def test_few_defects_stay_faint():
    damages = [drawing(family, defect, number=3).damage() for family, defect in COMBINATIONS]
    assert np.mean([not d.visible for d in damages]) < 0.03
    assert np.mean([d.attempts for d in damages]) < 1.5


def test_twin_differs_only_in_the_defect():
    twin = drawing("leather", "stain", 7).twin()
    assert twin == drawing("leather", "good", 7)
    assert twin.draw().image.shape == (64, 64, 3)


def test_captions_name_the_state_and_are_sentences_of_one_line():
    for family, defect in COMBINATIONS:
        for text in (drawing(family, defect).caption(), drawing(family, "good").caption()):
            assert "{" not in text and "\n" not in text and 10 < len(text) < 90
    normal = {drawing("gear", "good", n).caption() for n in range(60)}
    damaged = {drawing("gear", "scratch", n).caption() for n in range(60)}
    assert not normal & damaged and len(normal) > 20 and len(damaged) > 20
    assert any("scratch" in text for text in damaged) and any("gear" in text for text in damaged)


def test_words_for_every_defect():
    for kind in KINDS.values():
        assert kind.words and kind.states
