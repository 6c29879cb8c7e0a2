"""The option `layers` means the same in every method."""

from __future__ import annotations

import pytest

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.layers import tapped_layers
from tests.support.few_shot import tiny_backbone


def test_layers_are_numbers_the_last_block_or_the_backbones():
    backbone = tiny_backbone()
    assert tapped_layers(backbone, [3, 1]) == (3, 1)
    assert tapped_layers(backbone, "last") == (4,)
    assert tapped_layers(backbone, None) == backbone.layers == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"method.taps is \[\]: give different vision blocks of 1 to 4, or null for \[1, 2, 3, 4\]"),
        ([2, 2], r"method.taps is \[2, 2\]"),
        ([5], r"has vision blocks 1 to 4, not 5"),
    ],
)
def test_wrong_layers_are_one_line(layers: list[int], message: str):
    with pytest.raises(UserError, match=message):
        tapped_layers(tiny_backbone(), layers, option="taps")
