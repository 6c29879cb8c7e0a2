"""SubspaceAD's pieces: sums, the subspace, residuals, angles, memories that travel in checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.maps import gaussian_kernel_smooth
from anomaly_vlm.methods.subspacead import SubspaceAD
from anomaly_vlm.methods.subspacead.method import middle_layers
from anomaly_vlm.methods.subspacead.subspace import NormalSubspace, TokenSums
from tests.support.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums_of(*parts: torch.Tensor) -> TokenSums:
    sums = TokenSums()
    for part in parts:
        sums.add(part)
    return sums


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed))


def test_sums_in_one_pass_are_mean_and_covariance() -> None:
    x = noise(200, 6) + 50.0
    sums = sums_of(x[:30], x[30:110], x[110:])
    torch.testing.assert_close(sums.mean, x.mean(dim=0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(sums.covariance(), torch.cov(x.T), rtol=1e-9, atol=1e-9)
    other = x.mean(dim=0) + 0.3
    about = (x - other).T @ (x - other) / (len(x) - 1)
    torch.testing.assert_close(sums.covariance(about=other), about, rtol=1e-9, atol=1e-9)


def test_tokens_within_the_span_leave_nothing_over() -> None:
    basis = torch.linalg.qr(noise(8, 3)).Q
    sums = sums_of(noise(40, 3, seed=1) @ basis.T)
    subspace = NormalSubspace.fit(sums.mean, sums.covariance(), explained=0.9999)
    assert subspace.basis.shape == (8, 3)
    inside, outside = noise(5, 3, seed=2) @ basis.T, noise(5, 8, seed=3)
    assert subspace.residual(inside).max() < 1e-5 < 0.1 < subspace.residual(outside).min()
    turn = torch.linalg.qr(noise(8, 8, seed=4)).Q
    moved = sums_of(noise(40, 3, seed=1) @ basis.T @ turn)
    again = NormalSubspace.fit(moved.mean, moved.covariance(), explained=0.9999)
    torch.testing.assert_close(again.residual(outside @ turn), subspace.residual(outside), rtol=1e-4, atol=1e-5)


def test_the_dimension_grows_with_the_share() -> None:
    sums = sums_of(noise(30, 12) * torch.arange(1, 13))
    sizes = [
        NormalSubspace.fit(sums.mean, sums.covariance(), explained=share).basis.shape[1]
        for share in (0.3, 0.6, 0.9, 0.99)
    ]
    assert sizes == sorted(set(sizes))
    same = sums_of(torch.ones(5, 4))
    nothing = NormalSubspace.fit(same.mean, same.covariance(), explained=0.99)
    assert nothing.basis.shape == (4, 0) and nothing.residual(2 * torch.ones(1, 4)).item() == pytest.approx(4.0)


@pytest.mark.parametrize(("depth", "blocks"), [(8, (5, 7)), (12, (8, 9)), (24, (14, 18)), (40, (23, 29))])
def test_the_middle_blocks(depth: int, blocks: tuple[int, int]) -> None:
    found = middle_layers(depth)
    assert (found[0], found[-1]) == blocks and found == list(range(blocks[0], blocks[1] + 1))


def test_the_kernel_of_three_pixels() -> None:
    spot = torch.zeros(1, 5, 5)
    spot[0, 2, 2] = 1.0
    side = math.exp(-1 / 32) / (1 + 2 * math.exp(-1 / 32))
    found = gaussian_kernel_smooth(spot, 3, 4.0)[0]
    assert found[2, 2].item() == pytest.approx((1 - 2 * side) ** 2) and found[1, 2].item() == pytest.approx(
        side * (1 - 2 * side)
    )
    assert found[0].abs().max() == 0


def test_an_image_of_the_references_is_more_normal_and_states_travel(clip) -> None:
    options = {"rotations": 2, "layers": [0, 3], "aggregate": "concat", "explained": 0.9}
    method = SubspaceAD(clip, **options).eval()
    for i, word in enumerate(("gear", "metal nut")):
        method.fit_references(pictures(2, seed=i), category=word)
    known, other = (method(pictures(1, seed=i), category="gear").score for i in (0, 7))
    assert known < other
    again = SubspaceAD(clip, **options).eval()
    again.load_state_dict(method.state_dict(), strict=False)
    assert torch.equal(again(pictures(3), category="metal nut").map, method(pictures(3), category="metal nut").map)


def test_angles_depend_on_seed_category_image_and_copy_alone(clip) -> None:
    method, other = SubspaceAD(clip), SubspaceAD(clip, seed=1)
    angles = {method.angle("gear", *numbers) for numbers in ((0, 0), (0, 1), (1, 0), (0, 0, 1))}
    angles |= {method.angle("nut", 0, 0), other.angle("gear", 0, 0)}
    assert len(angles) == 6 and all(0 <= angle < 345 for angle in angles)
    assert method.angle("gear", 0, 0) == SubspaceAD(clip).angle("gear", 0, 0)


def test_both_ways_of_drawing_agree_without_rotations(clip) -> None:
    scores = []
    for draws in ("paper", "published"):
        method = SubspaceAD(clip, rotations=0, draws=draws).eval()
        method.fit_references(pictures(2), category="gear")
        scores.append(method(pictures(2, seed=3), category="gear").map)
    torch.testing.assert_close(*scores)


def test_fitted_to_the_test_images_it_is_marked(clip) -> None:
    method = SubspaceAD(clip, fit_on="test", explained=0.5).eval()
    assert method.display_name("subspacead") == "subspacead (transductive)"
    assert SubspaceAD(clip, no_rotation_for=["transistor"]).display_name("x") == "x (per-category switches)"
    images = pictures(1).repeat(6, 1, 1, 1)
    images[5] = pictures(1, seed=5)[0]
    assert method(images, category="gear").score.argmax() == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, r"method.kernel is 4: give an odd number"),
        ({"explained": 1.0}, r"method.explained is 1.0"),
        ({"layers": [9]}, r"vision blocks 1 to 4"),
        ({"aggregate": "group"}, r"method.layer_groups and method.aggregate=group belong together"),
    ],
)
def test_wrong_options_are_rejected(clip, options, message) -> None:
    with pytest.raises(UserError, match=message):
        SubspaceAD(clip, **options)


def test_what_only_the_references_tell_is_rejected_with_them(clip) -> None:
    for options, message in (
        ({"dimension": 99}, "tokens have 32 channels"),
        ({"dimension": 3, "drop": 3}, "drop fewer"),
    ):
        with pytest.raises(UserError, match=message):
            SubspaceAD(clip, rotations=0, **options).fit_references(pictures(1), category="gear")
    with pytest.raises(UserError, match=r"SubspaceAD has seen no normal images of category 'object' \(of: none\)"):
        SubspaceAD(clip).eval()(pictures(1))
