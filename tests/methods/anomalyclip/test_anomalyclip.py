"""AnomalyCLIP's options: defaults of the constructor, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.anomalyclip import AnomalyCLIP
from tests.support.few_shot import tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return tiny_backbone()


def test_the_backbone_alone_is_enough(backbone: ClipBackbone) -> None:
    method = AnomalyCLIP(backbone)
    assert (method.layers, method.vv_from, len(method.deep)) == ((4,), 1, 1)
    assert (method.sigma, method.temperature, method.words) == (4.0, 0.07, ("object", "damaged object"))
    assert method.text_features().shape == (2, 16)
    assert AnomalyCLIP(backbone, layers=None).layers == backbone.layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, r"method.layers is \[\]: give different vision blocks of 1 to 4, or null"),
        ({"layers": [5]}, "has vision blocks 1 to 4, not 5"),
        ({"dual_blocks": 9}, "method.dual_blocks is 9: give 0 to 4, the vision blocks of tiny"),
        ({"dual_blocks": -1}, "method.dual_blocks is -1"),
        ({"deep_depth": 3}, "method.deep_depth is 3: give 1 to 2, the text blocks of tiny"),
        ({"deep_length": 0}, "method.deep_length is 0"),
        ({"context_length": 0}, "method.context_length is 0: give a whole number of at least 1"),
        ({"contexts": 4}, "unknown option of AnomalyCLIP 'contexts'.*did you mean context_length"),
    ],
)
def test_wrong_options_are_one_line(backbone: ClipBackbone, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        AnomalyCLIP(backbone, **options)
    assert "\n" not in str(error.value)
