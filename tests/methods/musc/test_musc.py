"""MuSc's pieces: pooling, ranks, tiles, subsets, what too few images get, and that a score holds for its set alone."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from anomaly_vlm.backbone import load_vit
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.musc import MuSc
from anomaly_vlm.methods.musc.scoring import kept_ranks, mutual_scores, pooled, rescored
from tests.support.few_shot import make_batch
from tests.support.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("degree", [1, 3, 7])
def test_pooling_counts_zeros_outside_the_grid(degree: int) -> None:
    tokens = noise(2, 12, 5)
    x = F.layer_norm(tokens, (12, 5)).view(2, 3, 4, 5)
    by_hand = torch.zeros_like(x)
    for row in range(3):
        for column in range(4):
            reach = degree // 2
            window = x[:, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
            by_hand[:, row, column] = window.sum(dim=(1, 2)) / degree**2
    torch.testing.assert_close(pooled(tokens, (3, 4), degree), F.normalize(by_hand, dim=-1).view(2, 12, 5))


@pytest.mark.parametrize(("others", "ranks"), [(2, (0, 1)), (3, (0, 1)), (4, (0, 1)), (10, (0, 3)), (199, (0, 59))])
def test_at_least_one_rank_is_kept(others: int, ranks: tuple[int, int]) -> None:
    assert kept_ranks(others, (0.0, 0.3)) == ranks


def test_mutual_scores_follow_their_definition_whatever_the_tiles() -> None:
    z = F.normalize(noise(7, 6, 5), dim=-1)
    expected = torch.empty(7, 6)
    for i in range(7):
        others = torch.stack([torch.cdist(z[i], z[j]).amin(dim=1) for j in range(7) if j != i], dim=1)
        expected[i] = others.sort(dim=1).values[:, 1:4].mean(dim=1)
    for memory_mb in (256.0, 1e-3, 1e-6):  # all pairs at once, row by row, image by image
        found = mutual_scores(z, interval=(0.2, 0.7), memory_mb=memory_mb)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    own = torch.stack([(z[0] - z[j]).norm(dim=-1) for j in range(1, 7)], dim=1).amin(dim=1)
    aligned = mutual_scores(z, interval=(0.0, 0.1), aligned=(0, (2, 3)))
    torch.testing.assert_close(aligned[0], own, rtol=1e-4, atol=1e-5)


def test_rescoring() -> None:
    scores, features = torch.tensor([0.0, 1.0, 3.0]), F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.5], [-1.0, 0.1]]))
    torch.testing.assert_close(rescored(scores, features, neighbours=[1]), scores)
    assert torch.equal(rescored(scores, features, neighbours=[]), scores)
    near = float(features[0] @ features[1])
    two = torch.tensor([near / (1 + near), 1 / (1 + near), 3.0])  # the third image looks like no other
    torch.testing.assert_close(rescored(scores, features, neighbours=[9]), two)
    stretched = rescored(scores, features, neighbours=[1, 2], score_range="minmax")
    torch.testing.assert_close(3 * stretched, rescored(scores, features, neighbours=[1, 2]))
    assert not rescored(torch.ones(3), features, neighbours=[2], score_range="minmax").any()


@pytest.mark.parametrize("options", [{}, {"aligned": 1}, {"layers": [0, 2], "tap": "norm"}])
def test_the_odd_one_out_is_found(clip, options) -> None:
    images = pictures(1).repeat(9, 1, 1, 1)
    images[4] = pictures(1, seed=3)[0]
    prediction = MuSc(clip, neighbours=[1], **options).eval()(images, category="gear")
    assert prediction.score.argmax() == 4 and prediction.score[:4].max() < 5e-3 < 0.1 < prediction.score[4]
    assert prediction.map.shape == (9, 32, 32)


def test_a_vision_tower_without_texts_does_as_well() -> None:
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    tower = load_vit("vit_small_patch14_reg4_dinov2", random_seed=0, image_size=56, sizes=sizes)
    method = MuSc(tower).eval()
    assert method.tap == "norm"
    images = pictures(1).repeat(6, 1, 1, 1)
    images[2] = pictures(1, seed=3)[0]
    assert method(images, category="gear").score.argmax() == 2


def test_order_changes_nothing_and_categories_are_scored_apart(clip) -> None:
    images, method = pictures(10), MuSc(clip).eval()
    both = method(images, category=["gear", "nut"] * 5)
    gears = MuSc(clip).eval()(images[::2].flip(0), category="gear")
    torch.testing.assert_close(both.score[::2], gears.score.flip(0))
    torch.testing.assert_close(both.map[::2], gears.map.flip(0))


def test_subsets_are_even_and_depend_on_seed_and_category_alone(clip) -> None:
    method = MuSc(clip, subset_size=5)
    first = method.subset_of("gear", 13)
    assert sorted(first.count(part) for part in range(3)) == [4, 4, 5]
    assert first == method.subset_of("gear", 13) != method.subset_of("nut", 13)
    assert MuSc(clip).number_of_subsets(200) == 1 and MuSc(clip).number_of_subsets(201) == 2
    assert torch.isfinite(MuSc(clip, subsets=2).eval()(pictures(11), category="gear").score).all()
    with pytest.raises(UserError, match=r"method.subsets is 3: 'gear' has 11 images, give at most 2"):
        MuSc(clip, subsets=3).eval()(pictures(11), category="gear")


def test_too_few_images_and_images_that_it_has_not_seen(clip, caplog) -> None:
    method = MuSc(clip).eval()
    with pytest.raises(UserError, match=r"'screw' has 2, give at least 5 \(3 in an emergency\)"):
        method(pictures(2), category="screw")
    with pytest.raises(UserError, match=r"image 'image 0' was not among the images that MuSc compared with each other"):
        method.predict(make_batch(pictures(1), "screw"))
    with caplog.at_level(logging.WARNING, logger="anomaly_vlm"):
        assert torch.isfinite(method(pictures(3), category="screw").score).all()
    assert "'screw' has 3 images" in caplog.text
    assert method.display_name("musc") == "musc (transductive)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": [2]}, r"method.degrees is \[2\]: give odd window sides"),
        ({"interval": [0.3, 0.3]}, r"method.interval is \[0.3, 0.3\]: give two shares"),
        ({"layers": [5]}, r"vision blocks 1 to 4"),
        ({"subset_size": 4}, r"method.subset_size is 4"),
    ],
)
def test_wrong_options_are_rejected(clip, options, message) -> None:
    with pytest.raises(UserError, match=message):
        MuSc(clip, **options)
