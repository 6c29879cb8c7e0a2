"""FineGrainedAD's regions: clustering against plain loops, what masks and pooling do, regions of a drawn scene."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.finegrainedad.regions import RegionOptions, density_peaks, find_regions, pool_weights
from anomaly_vlm.options import check_value


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def plain_peaks(x: Tensor, count: int, neighbours: int, noise: Tensor) -> tuple[list[int], list[int]]:
    """One image's centres and assignment, token by token."""
    n = len(x)
    distance = [[float((x[i] - x[j]).norm()) / x.shape[1] ** 0.5 for j in range(n)] for i in range(n)]
    density = []
    for i in range(n):
        nearest = sorted(distance[i])[:neighbours]
        density.append(float(torch.tensor(-sum(d * d for d in nearest) / neighbours).exp()) + float(noise[i]) * 1e-6)
    scores = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if density[j] > density[i]]
        scores.append(density[i] * (min(denser) if denser else max(map(max, distance))))
    centres = sorted(range(n), key=lambda i: -scores[i])[:count]
    return centres, [min(range(count), key=lambda c: distance[centres[c]][i]) for i in range(n)]


@pytest.mark.parametrize(("count", "neighbours"), [(2, 3), (4, 5)])
def test_density_peaks_equal_plain_loops(count: int, neighbours: int) -> None:
    x, noise = draw(2, 30, 3), draw(2, 30, seed=1)
    found = density_peaks(x, count, neighbours, noise)
    for i in range(2):
        centres, assignment = plain_peaks(x[i], count, neighbours, noise[i])
        assert found.centres[i].tolist() == centres
        assert found.assignment[i].tolist() == assignment


def test_background_tokens_are_no_centres_and_fall_to_cluster_zero() -> None:
    x, foreground = draw(1, 30, 3), draw(1, 30, seed=3) > 0.4
    found = density_peaks(x, 3, 3, draw(1, 30, seed=1), foreground=foreground)
    assert foreground[0, found.centres[0]].all()
    assert (found.assignment[~foreground] == 0).all()


def scene(shots: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """12 x 12 patches: a background with two things on it, and the texts of the things and of the background."""
    directions = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    label = torch.full((12, 12), 2)
    label[2:6, 2:6], label[7:11, 6:11] = 0, 1
    first, second, behind = directions[:3]  # the things resemble each other more than the background
    clean = torch.stack([first + 0.8 * second, second + 0.8 * first, behind])[label.flatten()]
    noisy = clean + 0.05 * torch.randn(shots, *clean.shape, generator=torch.Generator().manual_seed(1))
    return F.normalize(noisy, dim=-1), directions[:3] * 3, label.flatten()


@pytest.mark.parametrize("shots", [1, 2])
def test_regions_of_a_scene(shots: int) -> None:
    """By densities, in place of stage 1's drawn centres: the foreground is the things; one of them has a region of its own,
    the other shares one with the background, whose tokens always join cluster 0."""
    features, texts, label = scene(shots)
    noise = (draw(shots, 144, seed=4), draw(shots, 144, seed=5))
    found = find_regions(features, texts, RegionOptions(density_k=5, mask="each"), noise)
    for b in range(shots):
        assert torch.equal(found.foreground[b], label != 2)
    boosted = (found.fine[:, 0] > 1) & (label != 2)
    assert boosted[0].any()
    assert (label[boosted[0]] == 0).all()
    assert found.match[2] == 0
    assert (found.region[0, label == 2] == 0).all()
    assert set(found.fine.unique().tolist()) == {1.0, 2.5}


def test_masks_are_the_same_for_one_shot() -> None:
    features, texts, _ = scene()
    noise = (draw(1, 144, seed=4), draw(1, 144, seed=5))
    one, own = (find_regions(features, texts, RegionOptions(mask=mask), noise) for mask in ("published", "each"))
    assert torch.equal(one.fine, own.fine)


def test_pooling() -> None:
    """Spatial: each patch's own block. Code: the same values, 16 consecutive patches at one offset."""
    fine = draw(2, 3, 24 * 36)
    spatial = pool_weights(fine, (6, 9), 4, "spatial")
    expected = F.avg_pool2d(fine.view(2, 3, 24, 36), 4).flatten(2)
    torch.testing.assert_close(spatial, expected)
    code = pool_weights(fine, (6, 9), 4, "published")
    offsets = fine.view(2, 3, 6, 4, 9, 4).permute(0, 1, 3, 5, 2, 4).reshape(2, 3, -1)  # offset first, then patch
    torch.testing.assert_close(code, offsets.unflatten(-1, (54, 16)).mean(dim=-1))
    torch.testing.assert_close(code.mean(dim=-1), spatial.mean(dim=-1))


@pytest.mark.parametrize("options", [{"pool": "mean"}, {"mask": "all"}, {"side_factor": 0}, {"density_k": 0}])
def test_wrong_options(options: dict) -> None:
    with pytest.raises(UserError, match=r"method\.region"):
        check_value("method.region", options, RegionOptions)
