"""Class-aware views: what they keep, what they change, and that they are the same on every call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.data import AnomalyDataModule, Preprocess
from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.data.class_aware import ClassAware, class_aware_view
from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.errors import UserError


def picture(grey: int, box: tuple[int, int, int, int] | None = None) -> tuple[Image.Image, Image.Image | None]:
    image = Image.new("RGB", (12, 8), (grey, grey, grey))
    if box is None:
        return image, None
    mask = Image.new("L", (12, 8))
    mask.paste(255, box)
    return image, mask


def views(own, anomalous: bool, other=None):
    other = other or (picture(9), False)
    for seed in range(40):
        yield class_aware_view(own, anomalous, lambda: other, 2, np.random.default_rng(seed))


def test_a_normal_image_stays_normal() -> None:
    for view in views(picture(5), False):
        assert view.label == 0 and not np.asarray(view.mask).any() and view.image.size == (12, 8)


def test_cells_of_an_anomalous_image_hold_its_defect_and_mosaics_all_parts() -> None:
    found = {"mosaic": 0, "cell": 0}
    for view in views(picture(5, (6, 0, 9, 4)), True):
        greys = set(np.asarray(view.image)[..., 0].flatten().tolist())
        kind = "mosaic" if greys == {5, 9} else "cell"
        found[kind] += 1
        assert view.label == 1 and np.asarray(view.mask).any()
        share = (np.asarray(view.mask) > 0).mean()
        assert share == pytest.approx(0.5 if kind == "cell" else 0.03, abs=0.03)
    assert min(found.values()) > 8
    assert any(view.label == 1 for view in views(picture(5), True, (picture(9, (0, 0, 12, 8)), True)))


def test_training_images_keep_their_category_and_repeat() -> None:
    source = ProceduralSource(size=48, train_count=84)
    augment = TrainingAugmentation(class_aware=ClassAware(1.0, (2,)))
    assert augment.changes({"procedural"}) and not TrainingAugmentation().changes({"procedural"})
    found = []
    for probability in (1.0, 1.0, 0.0):
        data = AnomalyDataModule(train=source, augment=TrainingAugmentation(class_aware=ClassAware(probability, (2,))))
        data.preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        found.append([data.dataset("train")[1, i] for i in range(12)])
    for first, second, plain in zip(*found, strict=True):
        assert torch.equal(first.image, second.image) and first.key is None
        assert not torch.equal(first.image, plain.image) and first.category == plain.category
        assert first.mask is not None and int(first.mask.any()) <= first.label  # thin defects may vanish in the resize
        assert plain.label or not first.label


def test_wrong_grids_are_rejected() -> None:
    with pytest.raises(UserError, match=r"augment.class_aware_grids is \[1\]: give whole numbers of at least 2"):
        ClassAware(0.5, [1])
