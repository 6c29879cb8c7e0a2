"""AdaCLIP's options: defaults of the constructor, groups of options, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.adaclip import AdaCLIP
from tests.support.few_shot import make_batch, tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return tiny_backbone()


def test_the_backbone_alone_is_enough(backbone: ClipBackbone) -> None:
    method = AdaCLIP(backbone)
    assert method.layers == backbone.layers
    assert (method.hsf.mode, method.hsf.k, method.hsf.top, method.hsf.alpha) == ("published", 20, 100, 0.2)
    assert method.image_prompts is not None and method.image_prompts.depth == 2  # the text tower has two blocks
    assert method.patch_projection is not None
    normal, abnormal = method.ensemble.sentences("pcb-4")
    assert (len(normal), len(abnormal)) == (7 * 4, 5 * 4)
    assert normal[0] == "a bad photo of a pcb 4." and abnormal[-1] == "a cropped photo of the pcb 4 with damage."


def test_features_of_text_are_normal_then_abnormal(backbone: ClipBackbone) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = AdaCLIP(backbone).features(make_batch(images, ["gear", "tile"]))
    assert features.text.shape == (2, 2, 16)
    torch.testing.assert_close(features.text.norm(dim=-1), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": None}, "unknown method.projection 'None': choose one of clip, linear"),
        ({"score_without_hsf": "map_max"}, "unknown method.score_without_hsf 'map_max'"),
        ({"prompts": {"text_mode": "insert"}}, "unknown method.prompts.text_mode 'insert'"),
        ({"prompts": {"branch": "T"}}, "unknown method.prompts.branch 'T'"),
        ({"prompts": {"dept": 3}}, "unknown key of method.prompts 'dept'.*did you mean depth"),
        (
            {"prompts": {"depth": 3}},
            "method.prompts.depth is 3: give 1 to 2, the blocks of the shallower tower of tiny",
        ),
        ({"prompts": {"length": 0}}, "method.prompts.length is 0: give a whole number of at least 1"),
        ({"hsf": {"mode": "code"}}, "unknown method.hsf.mode 'code'"),
        ({"hsf": {"k": 0}}, "method.hsf.k is 0"),
        ({"hsf": {"alpha": 2.0}}, "method.hsf.alpha is 2.0"),
        ({"layers": [2, 9]}, "has vision blocks 1 to 4, not 9"),
        ({"layers": "deepest"}, "method.layers is 'deepest'"),
        ({"temperature": 0.0}, "method.temperature is 0.0: give a finite number above 0"),
        ({"sigma": -1.0}, "method.sigma is -1.0"),
    ],
)
def test_wrong_options_are_one_line(backbone: ClipBackbone, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        AdaCLIP(backbone, **options)
    assert "\n" not in str(error.value)
