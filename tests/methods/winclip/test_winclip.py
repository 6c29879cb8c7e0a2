"""WinCLIP's pieces: windows, harmonic means, memories that travel in checkpoints, texts that are kept."""

from __future__ import annotations

import pytest
import torch

from anomaly_vlm.backbone import load_backbone
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.winclip import WinCLIP
from anomaly_vlm.methods.winclip.windows import arithmetic_mean, harmonic_mean, windows_of
from tests.support.few_shot import make_batch, make_references
from tests.support.tiny import tiny_architecture

SMALL = tiny_architecture(layers=2, text_layers=1, context_length=32)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("small", random_seed=0, architecture=SMALL, image_size=32)


def build(backbone, **options) -> WinCLIP:
    return WinCLIP(backbone, **options).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_windows_hold_their_patches_and_the_class_token():
    tokens, cover = windows_of(2, (3, 4))
    assert tokens.shape == (6, 5) and (tokens[:, 0] == 0).all()
    assert tokens[0, 1:].tolist() == [1, 2, 5, 6]  # rows 0 and 1, columns 0 and 1 of 4
    assert tokens[3, 1:].tolist() == [5, 6, 9, 10]
    assert cover.sum(dim=1).tolist() == [1, 2, 2, 1, 2, 4, 4, 2, 1, 2, 2, 1]
    for window, row in enumerate(tokens):
        assert cover[:, window].nonzero()[:, 0].tolist() == (row[1:] - 1).tolist()


def test_means_over_the_windows_of_a_patch():
    cover = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    values = torch.tensor([[0.2, 0.6]])
    torch.testing.assert_close(harmonic_mean(values, cover), torch.tensor([[0.2, 0.3]]))
    torch.testing.assert_close(arithmetic_mean(values, cover), torch.tensor([[0.2, 0.4]]))
    assert harmonic_mean(torch.tensor([[0.0, 0.6]]), cover).abs().max() < 1e-6, "a window at distance 0 decides"


@pytest.mark.parametrize("variant", ["paper", "published"])
def test_an_image_of_the_memory_is_more_normal_than_another(backbone, variant):
    method = build(backbone, variant=variant)
    references = images(2)
    method.fit_references([make_references(references, "gear")])
    with torch.no_grad():
        familiar, foreign = (method.predict(make_batch(x, "gear")) for x in (references[:1], images(1, seed=9)))
    assert familiar.map.shape == (1, 32, 32)
    assert familiar.map.mean() < foreign.map.mean()


def test_a_memory_travels_in_a_checkpoint(backbone):
    method, again = build(backbone), build(backbone)
    method.fit_references([make_references(images(2), "gear"), make_references(images(3, 4), "metal nut. v2")])
    state = method.state_dict()
    assert not any(key.startswith("backbone.") for key in state)
    again.check_learned(state, "checkpoint")
    again.load_state_dict(state, strict=False)
    batch = make_batch(images(2, 7), ["gear", "metal nut. v2"])
    with torch.no_grad():
        torch.testing.assert_close(again.predict(batch).map, method.predict(batch).map)


def test_a_category_without_references_is_rejected(backbone):
    method = build(backbone)
    method.fit_references([make_references(images(1), "gear")])
    with pytest.raises(UserError, match=r"category 'tile' has no reference images .*it has: gear"):
        method.predict(make_batch(images(1), "tile"))


def test_texts_are_encoded_once_and_kept(backbone, tmp_path, monkeypatch):
    first = build(backbone)
    first.token_cache = TokenCache({"weights": "small"}, folder=tmp_path)
    raw = first.text_features("gear")
    second = build(backbone)
    second.token_cache = TokenCache({"weights": "small"}, folder=tmp_path)
    monkeypatch.setattr(type(backbone), "encode_text", lambda *_, **__: pytest.fail("encoded again"))
    assert torch.equal(second.text_features("gear"), raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "cao"}, "unknown method.variant 'cao': choose one of paper, published"),
        ({"scales": 2}, "method.scales is 2"),
        ({"scales": []}, "different window sides"),
        ({"scales": [2, 2]}, "different window sides"),
        ({"temperature": 0.0}, "method.temperature is 0.0"),
        ({"gallery_lag": True}, "accident of variant published"),
        ({"eval_size": 0}, "method.eval_size is 0"),
        ({"memory_mb": 0}, "method.memory_mb is 0"),
        ({"texts": "winclip"}, "unknown table of texts 'winclip'.*did you mean winclip_prompts"),
    ],
)
def test_wrong_options_are_one_line(backbone, options, message):
    with pytest.raises(UserError, match=message):
        build(backbone, **options)


def test_a_window_larger_than_the_grid_is_rejected(backbone):
    with pytest.raises(UserError, match="window of 5 x 5 patches, the image has 4 x 4"):
        build(backbone, scales=[2, 5]).predict(make_batch(images(1), "gear"))


def test_swapped_channels_change_the_test_images_alone(backbone):
    plain, swapped = build(backbone), build(backbone, bgr_test=True)
    assert swapped.cache_key() is None and plain.cache_key() is not None
    picture = images(1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    by_hand = ((picture * std + mean).flip(1) - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(
            swapped.predict(make_batch(picture, "gear")).map, plain.predict(make_batch(by_hand, "gear")).map
        )


def test_texts_that_are_cut_are_named_though_their_features_come_from_the_cache(tmp_path, caplog):
    for _ in range(2):
        fresh = load_backbone("small", random_seed=0, architecture=SMALL, image_size=32)
        method = build(fresh)
        method.token_cache = TokenCache({"layers": [1]}, folder=tmp_path)
        caplog.clear()
        method.text_features("very " * 40)
        (told,) = caplog.messages
        assert "tokens is cut to 32: '" in told and told.endswith("more")
        method.text_features("gear")
        assert len(caplog.messages) == 1
