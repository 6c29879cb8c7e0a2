"""Random crops: size, scale, void around small images, repeatable sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.data.crops import RandomCrop
from anomaly_vlm.errors import UserError
from tests.support.road import road_data

FILL = (0.1, 0.2, 0.3)


def ramp(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that says where it was cut, and labels of the same values."""
    values = torch.arange(height * width).view(height, width).float()
    return (values / values.max()).expand(3, -1, -1), (values % 19).to(torch.uint8)


def test_crop_is_a_part_and_labels_follow() -> None:
    image, labels = ramp(20, 30)
    crop, cut = RandomCrop([8, 12])(image, labels, np.random.default_rng(0), FILL)
    assert crop.shape == (3, 8, 12) and cut is not None and cut.shape == (8, 12)
    first = int((crop[0, 0, 0] * (20 * 30 - 1)).round())
    assert torch.equal(crop, image[:, first // 30 : first // 30 + 8, first % 30 : first % 30 + 12])
    assert torch.equal(cut, labels[first // 30 : first // 30 + 8, first % 30 : first % 30 + 12])


def test_every_place_can_be_drawn() -> None:
    image, labels = ramp(4, 4)
    random = np.random.default_rng(0)
    corners = {float(RandomCrop([3, 3])(image, labels, random, FILL)[0][0, 0, 0]) for _ in range(60)}
    assert len(corners) == 4


def test_small_images_are_padded() -> None:
    image, labels = ramp(5, 30)
    crop, cut = RandomCrop([8, 12])(image, labels, np.random.default_rng(0), FILL)
    assert cut is not None and (cut[5:] == 255).all() and (cut[:5] != 255).all()
    torch.testing.assert_close(crop[:, 5:], torch.tensor(FILL).view(3, 1, 1).expand(3, 3, 12))


def test_short_side_is_drawn() -> None:
    image, labels = ramp(20, 40)
    crop, cut = RandomCrop([40, 80], short_sides=[40])(image, labels, np.random.default_rng(0), FILL)
    assert cut is not None and not (cut == 255).any() and set(cut.unique().tolist()) <= set(range(19))
    assert crop.amin() >= 0 and crop.amax() <= 1
    sizes = set()
    for seed in range(20):
        _, cut = RandomCrop([99, 99], short_sides=[10, 20])(image, labels, np.random.default_rng(seed), FILL)
        assert cut is not None
        sizes.add(int((cut != 255).sum()))
    assert sizes == {10 * 20, 20 * 40}


@pytest.mark.parametrize(("options", "message"), [
    ({"size": [8]}, r"augment\.crop\.size is \[8\]"),
    ({"size": [8, 0]}, r"augment\.crop\.size is \[8, 0\]"),
    ({"size": [8, 8], "short_sides": []}, r"augment\.crop\.short_sides is \[\]"),
])  # fmt: skip
def test_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandomCrop(**options)


def test_in_the_data_module() -> None:
    """Training alone, another crop in another epoch, the same one again for the same epoch."""
    data = road_data(augment=TrainingAugmentation(crop=RandomCrop([32, 32], short_sides=[40, 60])))
    assert data.augmented
    dataset = data.dataset("train")
    one, again, later = dataset[0, 1], dataset[0, 1], dataset[2, 1]
    assert one.image.shape == (3, 32, 32) and one.semantic is not None and one.semantic.shape == (32, 32)
    assert one.key is None and torch.equal(one.image, again.image) and not torch.equal(one.image, later.image)
    assert data.dataset("test")[0].image.shape == (3, 50, 90)
