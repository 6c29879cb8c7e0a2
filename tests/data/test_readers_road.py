"""Road data sets in made trees of their published layouts: what is found, and which pixels are known, anomalous and void."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_vlm.data import AnomalyDataModule, Preprocess, Sample
from anomaly_vlm.data.readers import road
from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.errors import UserError
from tests.data.made import Given
from tests.data.trees import labels, picture, road_tree

NATIVE = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), mask_resize="nearest", fit="native")


def corners(sample: Sample) -> list[list[int]]:
    """The label of each square of `tests.data.trees.labels`."""
    _, region = read_sample(sample)
    assert region is not None
    return np.asarray(region)[::4, ::4].tolist()


def test_cityscapes_train_ids(tmp_path: Path) -> None:
    found = road.read_cityscapes(road_tree("cityscapes", tmp_path))
    assert [(sample.split, sample.kind, sample.label) for sample in found] == [
        ("train", "semantic", 0),
        ("val", "semantic", 0),
    ]
    assert corners(found[0]) == [[0, 13], [255, 18]]


def test_cityscapes_table_is_the_official_one() -> None:
    assert len(road.CITYSCAPES) == 256
    assert [road.CITYSCAPES[i] for i in (7, 8, 11, 17, 23, 24, 25, 28, 31, 33)] == [0, 1, 2, 5, 10, 11, 12, 15, 16, 18]
    assert {road.CITYSCAPES[i] for i in (0, 4, 9, 10, 14, 15, 16, 18, 29, 30, 34, 255)} == {255}


@pytest.mark.parametrize(
    ("name", "reader", "expected"),
    [
        ("fishyscapes_laf", road.read_fishyscapes_laf, [[0, 1], [255, 0]]),
        ("fishyscapes_static", road.read_fishyscapes_static, [[0, 1], [255, 0]]),
        ("road_anomaly", road.read_road_anomaly, [[0, 1], [0, 1]]),
        ("lost_and_found", road.read_lost_and_found, [[255, 0], [1, 0]]),
    ],
)
def test_void_is_kept(name: str, reader, expected: list[list[int]], tmp_path: Path) -> None:
    sample = reader(road_tree(name, tmp_path))[0]
    assert (sample.kind, sample.label, sample.category) == ("mask", 1, "road")
    assert corners(sample) == expected


def test_versions_of_static_differ(tmp_path: Path) -> None:
    road_tree("fishyscapes_static", tmp_path)
    assert corners(road.read_fishyscapes_static(tmp_path, version=1)[0]) == [[0, 1], [0, 0]]
    with pytest.raises(UserError, match="version of fishyscapes_static '3'"):
        road.read_fishyscapes_static(tmp_path, version=3)  # type: ignore[arg-type]


def test_lost_and_found_label_files_say_the_same(tmp_path: Path) -> None:
    road_tree("lost_and_found", tmp_path)
    one, other = (road.read_lost_and_found(tmp_path, labels=kind) for kind in ("labelIds", "trainIds"))  # type: ignore[arg-type]
    assert corners(one[0]) == corners(other[0])


def test_lost_and_found_without_known_objects(tmp_path: Path) -> None:
    road_tree("lost_and_found", tmp_path)
    assert [Path(s.path).parent.name for s in road.read_lost_and_found(tmp_path)] == ["04_Maurener_Weg_8"]
    assert len(road.read_lost_and_found(tmp_path, no_known=False)) == 2


def test_positions_of_unlabelled_frames_count_in_the_whole_split_alone() -> None:
    frames = [Path(f"leftImg8bit/test/02_scene/02_scene_{i:06d}_leftImg8bit.png") for i in range(road.TEST_FRAMES)]
    kept = road._no_known(frames)
    assert len(kept) == road.TEST_FRAMES - len(road.UNLABELLED)
    assert frames[16] in kept and frames[17] not in kept and frames[793] not in kept
    assert len(road._no_known(frames[:100])) == 100


def test_validation_frames_of_the_benchmark(tmp_path: Path) -> None:
    road_tree("road_anomaly21", tmp_path)
    road_tree("road_obstacle21", tmp_path)
    found = road.read_segment_me(tmp_path, folder="dataset_ObstacleTrack")
    assert [(Path(s.path).name, s.split, s.label) for s in found] == [
        ("test0001.webp", "test", None),
        ("validation_1.webp", "val", 1),
    ]
    assert corners(found[1]) == [[0, 1], [255, 0]]
    assert len(road.read_segment_me(tmp_path / "dataset_AnomalyTrack", folder="dataset_AnomalyTrack")) == 2


def test_missing_labels_and_frames_are_named(tmp_path: Path) -> None:
    road_tree("cityscapes", tmp_path)
    (tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"ulm_000000_000019_leftImg8bit.png' has no labels: expected '.*labelIds.png'"):
        road.read_cityscapes(tmp_path)
    labels(tmp_path / "fishyscapes_lostandfound/0000_a_000000_labels.png", [[0, 1], [255, 0]])
    with pytest.raises(UserError, match=r"put Lost and Found's 'a_000000_leftImg8bit\.png' anywhere below"):
        road.read_fishyscapes_laf(tmp_path)


def test_other_values_are_void_and_colours_are_refused(tmp_path: Path) -> None:
    road_tree("road_anomaly21", tmp_path)
    base = tmp_path / "dataset_AnomalyTrack"
    labels(base / "labels_masks/validation0001_labels_semantic.png", [[0, 1], [7, 200]])
    sample = road.read_segment_me(tmp_path, folder="dataset_AnomalyTrack")[1]
    assert corners(sample) == [[0, 1], [255, 255]]
    picture(base / "labels_masks/validation0001_labels_semantic.png", mode="RGB")
    with pytest.raises(UserError, match="has colours"):
        read_sample(sample)


def test_sizes_of_their_own(tmp_path: Path) -> None:
    """Frames of two sizes: one at a time as they are; two at a time are refused; a frame makes them one size."""
    road_tree("road_anomaly", tmp_path)
    source = Given(road.read_road_anomaly(tmp_path))
    data = AnomalyDataModule(test=source, eval_batch_size=1)
    data.preprocess = NATIVE
    shapes = [
        (tuple(b.image.shape[-2:]), tuple(b.mask.shape[-2:])) for b in data.test_dataloader() if b.mask is not None
    ]
    assert shapes == [((8, 8), (8, 8)), ((8, 16), (8, 16))]
    data.preprocess = replace(NATIVE, mask_size=4)  # maps are compared at another size than that of the image
    assert [tuple(b.mask.shape[-2:]) for b in data.test_dataloader() if b.mask is not None] == [(4, 4), (4, 4)]
    both = AnomalyDataModule(test=source, eval_batch_size=2)
    both.preprocess = NATIVE
    with pytest.raises(UserError, match="images of 8x8 and 8x16 pixels in one batch"):
        next(iter(both.test_dataloader()))
    both.preprocess = Preprocess(
        NATIVE.size, NATIVE.mean, NATIVE.std, mask_resize="nearest", fit="native", frame=(6, 12)
    )
    batch = next(iter(both.test_dataloader()))
    assert batch.image.shape == (2, 3, 6, 12) and batch.mask is not None
    assert set(batch.mask.unique().tolist()) == {0, 1}


def test_semantic_items(tmp_path: Path) -> None:
    """Train ids where classes are known; nothing anomalous in Cityscapes; void in both."""
    data = AnomalyDataModule(train=Given(road.read_cityscapes(road_tree("cityscapes", tmp_path))))
    data.preprocess = NATIVE
    item = data.dataset("train")[0]
    assert item.semantic is not None and item.mask is not None
    assert item.semantic[::4, ::4].tolist() == [[0, 13], [255, 18]]
    assert torch.equal(item.mask == 255, item.semantic == 255) and not (item.mask == 1).any()
