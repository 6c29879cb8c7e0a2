"""A memory without some of its references, from one encoding of each, is that of the others alone."""

from __future__ import annotations

import pytest
import torch

from anomaly_vlm import load_method
from anomaly_vlm.methods.base.images import references_of


@pytest.mark.parametrize(
    ("name", "options"),
    [("winclip", {}), ("anomalydino", {"angles": [0, 90]}), ("anomalydino", {"rotation": False, "coreset": 0.5})],
)
@torch.no_grad()
def test_left_out_references_leave_no_trace(name: str, options: dict) -> None:
    few_shot = ["shots=1"] if name == "anomalydino" else []
    method = load_method(name, "tiny_random", overrides=["image_size=64", *few_shot], **options)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    encoded = method.encode_references(references_of(method, images, "gear"))
    method.fit_encoded("gear", encoded, without=[1, 3])
    found = {key: value.clone() for key, value in method.state_dict().items()}
    method.fit_references(images[[0, 2]], category="gear")
    alone = method.state_dict()
    banks = [key for key in found if key.endswith(".bank")]
    assert banks and found.keys() == alone.keys()
    for key in banks:
        torch.testing.assert_close(found[key], alone[key])
