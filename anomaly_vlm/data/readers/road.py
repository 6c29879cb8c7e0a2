"""Road scenes: Cityscapes for training, and sets with unknown objects for evaluation. Void pixels (255) stay void.

Every frame of an evaluation set counts as anomalous; what lies where is in its labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from anomaly_vlm.data.readers.listing import folders, images
from anomaly_vlm.data.types import VOID, LabelKind, Sample
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import read_json

ROAD = "road"  # the category: all frames are rows of one table
# labelIds of the 19 classes in the order of their train ids
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Frames of Lost and Found's test split that `testNoKnown` leaves out: without labels (in the order of names), known objects.
UNLABELLED = (17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793)
KNOWN_OBJECTS = (
    "15_Rechbergstr_Deckenpfronn",
    "01_Hanns_Klemm_Str_45_000006",
    "01_Hanns_Klemm_Str_45_000007",
    "10_Schlossberg_9_000004",
)
TEST_FRAMES = 1203
NOT_IN_BENCHMARK = {"validation_19", *(f"validation_{i}" for i in range(21, 30))}  # of RoadObstacle21


def lookup(values: Mapping[int, int]) -> tuple[int, ...]:
    """Value in a file -> label; void for all that `values` does not name."""
    return tuple(values.get(value, VOID) for value in range(256))


CITYSCAPES = lookup({label_id: train_id for train_id, label_id in enumerate(LABEL_IDS)})
ANOMALY = lookup({0: 0, 1: 1})
ANY_ABOVE = lookup({0: 0, 1: 1, 2: 1})
LOST_AND_FOUND = {
    "labelIds": lookup({1: 0, **dict.fromkeys(range(2, 201), 1)}),
    "trainIds": lookup({1: 0, 2: 1}),
}


def _frame(image: Path, label: Path | None, table: tuple[int, ...], split: str, *, kind: LabelKind = "mask") -> Sample:
    if label is None:
        return Sample(str(image), ROAD, None, defect="", split=split, kind="none")
    labelled = kind == "semantic"
    return Sample(
        path=str(image),
        category=ROAD,
        label=0 if labelled else 1,
        masks=(str(label),),
        defect="good" if labelled else "unknown object",
        split=split,
        kind=kind,
        lookup=table,
    )


def _beside(image: Path, label: Path) -> Path:
    if not label.is_file():
        raise UserError(f"frame '{image}' has no labels: expected '{label}'; add them, or take the frame out")
    return label


def read_cityscapes(root: Path) -> list[Sample]:
    """`leftImg8bit/SPLIT/CITY/X_leftImg8bit.png` with `gtFine/SPLIT/CITY/X_gtFine_labelIds.png`; train ids, others void."""
    found = []
    for split in ("train", "val", "test"):
        for city in folders(root / "leftImg8bit" / split):
            for image in images(city):
                stem = image.name.removesuffix("_leftImg8bit.png")
                label = root / "gtFine" / split / city.name / f"{stem}_gtFine_labelIds.png"
                found.append(_frame(image, _beside(image, label), CITYSCAPES, split, kind="semantic"))
    return found


def read_fishyscapes_laf(root: Path) -> list[Sample]:
    """`fishyscapes_lostandfound/NNNN_X_labels.png` with Lost and Found's `X_leftImg8bit.png` anywhere below the root."""
    frames = {path.name: path for path in root.rglob("*_leftImg8bit.png")}
    found = []
    for label in images(root / "fishyscapes_lostandfound"):
        if not label.name.endswith("_labels.png"):
            continue
        name = label.name[5:].removesuffix("labels.png") + "leftImg8bit.png"
        if name not in frames:
            raise UserError(f"labels '{label}' have no frame: put Lost and Found's '{name}' anywhere below '{root}'")
        found.append(_frame(frames[name], label, ANOMALY, "val"))
    return found


def read_fishyscapes_static(root: Path, *, version: Literal[1, 2] = 2) -> list[Sample]:
    """`fs_static_images_vV/X_rgb.png` with `fs_val_vV/X_labels.png`.

    Args:
        root: Folder of the set.
        version: V; the two differ.
    """
    if version not in (1, 2):
        raise unknown_choice("version of fishyscapes_static", str(version), ["1", "2"])
    place = root / f"fs_val_v{version}"
    return [
        _frame(image, _beside(image, place / f"{image.name.removesuffix('rgb.png')}labels.png"), ANOMALY, "val")
        for image in images(root / f"fs_static_images_v{version}")
        if image.name.endswith("rgb.png")
    ]


def read_road_anomaly(root: Path) -> list[Sample]:
    """`frames/X.jpg`, named in `frame_list.json`, with `frames/X.labels/labels_semantic.png`; 1 and 2 are anomalous."""
    listing = root / "frame_list.json"
    if not listing.is_file():
        return []
    names = read_json(listing, what="list of frames", way="fetch the set again")
    if not isinstance(names, list):
        raise UserError(f"'{listing}' is no list of frames (it holds a {type(names).__name__}): fetch the set again")
    found = []
    for name in sorted(str(name) for name in names):
        image = root / "frames" / name
        label = root / "frames" / f"{image.stem}.labels" / "labels_semantic.png"
        found.append(_frame(image, _beside(image, label), ANY_ABOVE, "test"))
    return found


def read_segment_me(root: Path, *, folder: str) -> list[Sample]:
    """SegmentMeIfYouCan: `FOLDER/images/X.*` with `FOLDER/labels_masks/X_labels_semantic.png`.

    `validation*` is split `val`; labels of the others are not public, so that these are good for prediction alone.

    Args:
        root: Folder of the set.
        folder: `dataset_AnomalyTrack` (RoadAnomaly21) or `dataset_ObstacleTrack` (RoadObstacle21).
    """
    base = root / folder if (root / folder).is_dir() else root
    found = []
    for image in images(base / "images"):
        validation = image.stem.startswith("validation")
        if image.stem in NOT_IN_BENCHMARK:
            continue
        label = base / "labels_masks" / f"{image.stem}_labels_semantic.png"
        split = "val" if validation else "test"
        found.append(_frame(image, _beside(image, label) if validation else None, ANOMALY, split))
    return found


def read_lost_and_found(
    root: Path, *, labels: Literal["labelIds", "trainIds"] = "labelIds", no_known: bool = True
) -> list[Sample]:
    """`leftImg8bit/SPLIT/SCENE/X_leftImg8bit.png` with `gtCoarse/SPLIT/SCENE/X_gtCoarse_LABELS.png`; outside the road void.

    Args:
        root: Folder of the set.
        labels: Which of the two label files is read.
        no_known: The test split without frames that have no labels or show objects of Cityscapes classes
            (`testNoKnown`: 1,043 of 1,203).
    """
    if labels not in LOST_AND_FOUND:
        raise unknown_choice("labels of lost_and_found", labels, LOST_AND_FOUND)
    found = []
    for split in ("train", "test"):
        frames = [image for scene in folders(root / "leftImg8bit" / split) for image in images(scene)]
        if split == "test" and no_known:
            frames = _no_known(frames)
        for image in frames:
            stem = image.name.removesuffix("_leftImg8bit.png")
            label = root / "gtCoarse" / split / image.parent.name / f"{stem}_gtCoarse_{labels}.png"
            found.append(_frame(image, _beside(image, label), LOST_AND_FOUND[labels], split))
    return found


def _no_known(frames: Iterable[Path]) -> list[Path]:
    ordered = sorted(frames, key=lambda path: (path.parent.name, path.name))
    if len(ordered) == TEST_FRAMES:  # positions mean something in the complete split alone
        ordered = [path for i, path in enumerate(ordered) if i not in UNLABELLED]
    return [path for path in ordered if not path.name.startswith(KNOWN_OBJECTS)]
