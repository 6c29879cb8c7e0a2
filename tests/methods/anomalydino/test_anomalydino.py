"""AnomalyDINO's pieces: rotations, the foreground mask, distances, references as users give them, the batched mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_vlm.backbone import load_vit
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.anomalydino import AnomalyDINO
from anomaly_vlm.methods.anomalydino.batched import batched_distance
from anomaly_vlm.methods.shared.foreground import MaskOptions, foreground
from anomaly_vlm.methods.shared.maps import top_share_mean
from anomaly_vlm.methods.shared.turned import turn_reflected
from tests.support.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("warp", ["exact", "quantised"])
def test_turning(warp) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    assert (turn_reflected(image, 0, warp=warp) == image).all() and (
        turn_reflected(image, 360, warp=warp) == image
    ).all()
    half = turn_reflected(image, 180, warp=warp)
    assert (half[1:, 1:] == image[1:, 1:][::-1, ::-1]).all(), (
        "the centre is (W / 2, H / 2): the first row is a reflection"
    )
    assert (half[0, 1:] == image[-2, 1:][::-1]).all()


def test_the_mask_does_not_depend_on_the_sign_of_the_tokens() -> None:
    tokens = 0.1 * noise(10, 10, 6)
    tokens[2:7, 3:7] += 15.0
    options = MaskOptions()
    found = foreground(tokens, options).mask
    assert torch.equal(found, foreground(-tokens, options).mask)
    assert found[2:7, 3:7].all() and not found[:, 9:].any()
    assert not foreground(torch.ones(4, 4, 3), options).mask.any(), "tokens that are all equal have no component"
    assert foreground(torch.ones(1, 1, 3), options).mask.all()


def test_on_one_row_both_morphologies_agree() -> None:
    tokens = 20 * noise(1, 30, 4)
    column, grid = (foreground(tokens, MaskOptions(morphology=kind)).mask for kind in ("column", "grid"))
    assert torch.equal(column, grid)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (99, 1), (100, 1), (199, 1), (200, 2)])
def test_the_top_share_is_at_least_one_value(count: int, kept: int) -> None:
    values = torch.arange(count, dtype=torch.float32)
    torch.testing.assert_close(top_share_mean(values[None], 0.01), values[-kept:].mean()[None])


@pytest.mark.parametrize(
    "options", [{}, {"rotation": False}, {"rotation": False, "aligned": 0}, {"layer": 0, "tap": "raw"}]
)
def test_a_reference_itself_is_at_distance_zero_and_others_are_not(clip, options) -> None:
    method = AnomalyDINO(clip, sigma=0.0, **options).eval()
    images = pictures(2)
    method.fit_references(images[:1], category="gear")
    known, other = method(images[:1], category="gear"), method(images[1:], category="gear")
    assert known.map.max() < 1e-5 < 0.01 < other.map.max() and known.score < other.score


def test_a_vision_tower_without_texts_does_as_well() -> None:
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    tower = load_vit("vit_small_patch14_dinov2", random_seed=0, image_size=56, pos_resize="dinov2", sizes=sizes)
    method = AnomalyDINO(tower, metric="euclidean", neighbours=3, coreset=0.5).eval()
    method.fit_references(pictures(1), category="gear")
    assert method(pictures(1), category="gear").score < method(pictures(1, seed=4), category="gear").score
    state = method.state_dict()
    again = AnomalyDINO(tower, metric="euclidean", neighbours=3, coreset=0.5).eval()
    again.load_state_dict(state, strict=False)
    assert torch.equal(again(pictures(2), category="gear").map, method(pictures(2), category="gear").map)


def test_batched_distances_follow_their_definition() -> None:
    tokens = [noise(7, 5, seed=i) for i in range(4)]
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in tokens]
    others = 1 - unit[1] @ torch.cat([unit[0], *unit[2:]]).T  # [7, 21]
    smallest = others.sort(dim=1).values[:, :5]  # the fifth is the limit that is not reached
    found = batched_distance(tokens, 1, quantile=5 / 21, memory_mb=1e-4)
    torch.testing.assert_close(found, smallest[:, :4].mean(dim=1), rtol=1e-4, atol=1e-5)
    equal = [tokens[0]] * 5
    assert batched_distance(equal, 0, quantile=4 / 28).abs().max() < 1e-5, "ties leave the smallest distance"


def test_the_batched_mode_scores_a_set_and_nothing_else(clip) -> None:
    method = AnomalyDINO(clip, fit_on="test").eval()
    assert method.display_name("anomalydino") == "anomalydino (transductive)"
    images = pictures(1).repeat(4, 1, 1, 1)
    images[3] = pictures(1, seed=5)[0]
    score = method(images, category="gear").score
    assert score.argmax() == 3 and score[:3].max() < 1e-5
    with pytest.raises(UserError, match=r"'gear' has 1, give at least 2, or references"):
        method(images[:1], category="gear")


def test_defaults_use_no_category_and_switches_are_marked(clip) -> None:
    plain, switched = AnomalyDINO(clip), AnomalyDINO(clip, masking="published", rotation="informed")
    assert plain.display_name("anomalydino") == "anomalydino"
    assert switched.display_name("anomalydino") == "anomalydino (per-category switches)"
    images, scores = pictures(3), []
    for word in ("screw", "gear"):
        plain.fit_references(images[:1], category=word)
        scores.append(plain(images, category=word).score)
    assert torch.equal(*scores)
    sizes = {}
    for word in ("screw", "gear"):  # the published tables turn and mask screws, and know no gears
        switched.fit_references(images[:1], category=word)
        sizes[word] = len(switched.memory(word)["patches"].bank)
    assert sizes["screw"] == 8 * sizes["gear"]
    assert switched(images, category="screw").score.max() == 0, (
        "random weights have no component above 10: all is masked"
    )
    assert switched(images, category="gear").score.max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 9}, r"layers \[9\]: tiny has vision blocks 1 to 4 \(0: the patch embedding\), not 9"),
        ({"aligned": 1}, r"method.aligned compares patches at their own positions: set rotation=false"),
        ({"angles": []}, r"method.angles is empty"),
        ({"top": 0.0}, r"method.top is 0.0"),
        ({"masking": "always"}, r"method.masking is 'always'"),
    ],
)
def test_wrong_options_are_rejected(clip, options, message) -> None:
    with pytest.raises(UserError, match=message):
        AnomalyDINO(clip, **options)


def test_without_references_it_says_so(clip) -> None:
    with pytest.raises(UserError, match=r"AnomalyDINO compares with normal images and has none"):
        AnomalyDINO(clip).eval()(pictures(1))
