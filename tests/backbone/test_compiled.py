"""Compiled blocks compute what plain ones do, and really run compiled."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from anomaly_vlm.backbone.blocks import Prompts
from anomaly_vlm.backbone.compiled import compile_blocks
from anomaly_vlm.errors import UserError
from tests.support.tiny import tiny_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's own tracer
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


def test_compiled_blocks_compute_the_same() -> None:
    plain, compiled, counter = tiny_clip(), tiny_clip(), CompileCounter()
    assert compile_blocks(compiled, counter) == 6  # four of the image tower, two of the text tower
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = Prompts([torch.full((2, 32), 0.1, requires_grad=True)])
    for tower in (plain, compiled):
        tower.text_features = tower.encode_sentences(["a gear", "a damaged gear"])
        tower.tokens = tower.encode_image(images, layers=[2, 4], prompts=prompts).patches
    assert counter.frame_count > 0
    assert torch.allclose(plain.text_features, compiled.text_features, atol=1e-6)
    for one, other in zip(plain.tokens, compiled.tokens, strict=True):
        assert torch.allclose(one, other, atol=1e-6) and other.requires_grad
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert plain.fingerprint() == compiled.fingerprint()


def test_an_unknown_backend_is_rejected() -> None:
    with pytest.raises(UserError, match="unknown compile 'inducter'"):
        compile_blocks(tiny_clip(), "inducter")
