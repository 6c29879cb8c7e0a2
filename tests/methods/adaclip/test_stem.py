"""AdaCLIP on a backbone with a stem: what comes out of the stem is kept, and nothing else changes; the score of its maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone, load_backbone
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.adaclip import AdaCLIP
from tests.support.conf import loss_conf
from tests.support.tiny import tiny_architecture

TINY = tiny_architecture(image_size=64, patch_size=16, layers=3, text_layers=3)
STEM = {"name": "tf_efficientnet_lite0", "stages": 5}


@pytest.fixture(scope="module")
def hybrid() -> ClipBackbone:
    return load_backbone("hybrid", architecture=TINY, stem=STEM, random_seed=0)


def adaclip(backbone: ClipBackbone, **options: Any) -> AdaCLIP:
    prompts = {"branch": "VL", "type": "SD", "depth": 2, "length": 2}
    return AdaCLIP(
        backbone,
        states_normal=["{}"],
        states_abnormal=["damaged {}"],
        templates=["a photo of a {}."],
        layers=[2, 3],
        **{"prompts": prompts, "hsf": {"k": 2}, "losses": build_terms(loss_conf("adaclip")), **options},
    )


def two_images() -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        unencoded=torch.randn(2, 3, 64, 64, generator=g),
        label=torch.tensor([0, 1]),
        mask=torch.randint(0, 2, (2, 64, 64), generator=g).to(torch.uint8),
        category=["gear", "tile"],
        path=["a", "b"],
        index=torch.tensor([0, 1]),
        key=["key_a", "key_b"],
    )


def step(method: AdaCLIP, batch: Batch) -> dict[str, Tensor]:
    """Losses and gradients."""
    method.zero_grad()
    values = method.losses(batch)
    method.total_loss(values).backward()
    gradients = {name: p.grad.clone() for name, p in method.learnable().items() if p.grad is not None}
    return {**{name: value.detach() for name, value in values.items()}, **gradients}


def test_a_served_batch_skips_the_stem_and_changes_nothing(hybrid: ClipBackbone, monkeypatch: pytest.MonkeyPatch):
    method, batch = adaclip(hybrid), two_images()
    expected = step(method, batch)
    assert "image_prompts.static.0" in expected
    cache = method.token_cache = TokenCache(method.cache_key() or {}, memory_bytes=10**8)
    step(method, batch)
    monkeypatch.setattr(type(hybrid.visual.conv1), "forward", lambda *_: pytest.fail("an image passed the stem"))
    served = replace(batch, unencoded=batch.image[:0], tokens=[cache.get(key) for key in batch.key])
    found = step(method, served)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert method.predict(served).map.shape == (2, 64, 64)


def test_without_a_stem_nothing_is_kept():
    plain = load_backbone("plain", architecture=TINY, random_seed=0)
    assert adaclip(plain).cache_key() is None


def test_the_score_of_the_most_abnormal_patches(hybrid: ClipBackbone):
    method = adaclip(hybrid, hsf={"enabled": False}, score_without_hsf="map_top", top_share=0.25)
    logits = torch.zeros(2, 1, 8, 2)
    logits[:, 0, 3, 1] = 4.0
    logits[0, 0, 5, 1], logits[1, 0, 5, 1] = 4.0, 0.0
    torch.testing.assert_close(method.top_score(logits), torch.tensor([3.0]).sigmoid())  # patches 3 and 5: 4 and 2
    batch = two_images()
    assert torch.equal(method.predict(batch).score, method.top_score(method.patch_logits(method.features(batch))))
    with pytest.raises(UserError, match="top_share is 0"):
        adaclip(hybrid, top_share=0.0)
