"""Drawn road scenes: deterministic, any size, labels of known classes, unknown objects in evaluation alone."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from anomaly_vlm.data.drawn.roads import ProceduralRoadSource, RoadDrawing, known, unknown
from anomaly_vlm.data.types import UNKNOWN
from anomaly_vlm.errors import UserError
from tests.support.road import first_batch

CLASSES = {0, 1, 2, 5, 7, 8, 9, 10, 11, 13, 14}


def scene(side: str = "test", number: int = 0, **changes: int) -> RoadDrawing:
    return dataclasses.replace(RoadDrawing(0, side, number, 96, 192), **changes)


def test_the_same_fields_give_the_same_pixels() -> None:
    one, again = scene().draw(), scene().draw()
    assert np.array_equal(one.image, again.image) and np.array_equal(one.mask, again.mask)
    for other in (scene(number=1), scene(seed=1), scene("val")):
        assert not np.array_equal(one.image, other.draw().image)


def test_labels_stay_what_they_are() -> None:
    """A digest of the labels of a few scenes: whoever changes the drawings changes the benchmark, and says so."""
    digest = hashlib.sha256()
    for side in ("train", "val", "test"):
        for number in range(3):
            digest.update(scene(side, number).draw().mask.tobytes())
    assert digest.hexdigest()[:16] == "3ba6c73a6a4292e6"


def test_unknown_objects_in_evaluation_alone() -> None:
    shares = {
        side: [(scene(side, i).draw().mask == UNKNOWN).mean() for i in range(12)] for side in ("train", "val", "test")
    }
    assert max(shares["train"]) == 0
    assert min(*shares["val"], *shares["test"]) >= 0.004 and 0.02 < np.mean(shares["val"] + shares["test"]) < 0.07


def test_known_classes() -> None:
    """All eleven classes occur, none else; every pixel has a label."""
    found = np.unique(np.stack([scene("train", i).draw().mask for i in range(16)]))
    assert set(found.tolist()) == CLASSES


def test_known_and_unknown_shapes_are_disjoint() -> None:
    assert not set(known.SHAPES) & set(unknown.SHAPES)
    assert not set(known.SHAPES.values()) & set(unknown.SHAPES.values())


def test_any_size_shows_the_same_scene() -> None:
    small, large = scene().draw(), scene(height=192, width=384).draw()
    assert large.image.shape == (192, 384, 3) and large.image.dtype == np.uint8
    assert (large.mask[::2, ::2] == small.mask).mean() > 0.93
    odd = scene(height=61, width=77).draw()
    assert odd.image.shape == (61, 77, 3) and odd.mask.shape == (61, 77)


def test_scenes_differ_in_light_and_layout() -> None:
    images = [scene("train", i).draw().image for i in range(10)]
    assert np.std([image.mean() for image in images]) > 5
    horizons = [int((scene("train", i).draw().mask == 10).any(axis=1).sum()) for i in range(10)]
    assert len(set(horizons)) > 5


def test_source() -> None:
    source = ProceduralRoadSource(train_count=3, val_count=2, test_count=1)
    assert [len(source.samples(side)) for side in ("train", "val", "test")] == [3, 2, 1]
    sample = source.samples("test")[0]
    assert (sample.kind, sample.label, sample.category) == ("semantic", 1, "road")
    assert source.samples("train")[0].label == 0 and source.note == "drawn, 96 x 192"
    for options, message in (
        ({"height": 8}, "height is 8"),
        ({"seed": -1}, "seed is -1"),
        ({"val_count": -2}, "val_count is -2"),
    ):
        with pytest.raises(UserError, match=message):
            ProceduralRoadSource(**options)
    with pytest.raises(UserError, match="side of a data set"):
        source.samples("all")


def test_batches_know_classes_and_objects() -> None:
    train, test = first_batch(), first_batch("test")
    assert train.semantic is not None and train.mask is not None and not (train.mask == 1).any()
    assert set(train.semantic.unique().tolist()) <= CLASSES
    assert test.semantic is not None and test.mask is not None
    assert ((test.mask == 1) == (test.semantic == 255)).all() and (test.mask == 1).any()
    assert test.size == (50, 90)
