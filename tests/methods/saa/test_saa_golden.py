"""SAA against the published program's numbers: which boxes stay, both saliency maps, scores, fusion."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.detectors import Queries
from anomaly_vlm.methods.saa.proposals import BoxThresholds, fused, rescored, selected
from anomaly_vlm.methods.saa.saliency import joined_stages, unlike_the_others, unlike_the_rest
from anomaly_vlm.methods.shared.maps import upsample
from tests.support.golden import Fixture, fixture_paths

pytestmark = pytest.mark.golden
RTOL, ATOL = 1e-5, 1e-6  # this fixture's
PIECES, WORD = ("defect", "on", "nut", "."), "nut"  # what its first tokens spell; the others spell nothing


@pytest.mark.parametrize("path", fixture_paths("saa", settings=False), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    fixture = Fixture(path)
    check = partial(fixture.check, rtol=RTOL, atol=ATOL)
    boxes(fixture, check)
    size = saliency(fixture, check)
    fusion(fixture, check, size)
    fixture.finish()


def boxes(fixture: Fixture, check: Any) -> None:
    probs = fixture.input("boxes/token_scores")
    pieces = (*PIECES, *[""] * (probs.shape[1] - len(PIECES)))
    queries = Queries(fixture.input("boxes/cxcywh"), probs.amax(dim=1), probs, pieces)
    groups = sorted({key.split("/")[1] for key in fixture.tensors if key.endswith("/thresholds")})
    assert groups
    for group in groups:
        box, text, largest, smallest = fixture.input(f"boxes/{group}/thresholds").tolist()
        kept = selected(queries, BoxThresholds(box, text), WORD, max_area=largest, min_area=smallest)
        check(f"boxes/{group}/kept", kept.boxes)
        check(f"boxes/{group}/score", kept.scores)


def saliency(fixture: Fixture, check: Any) -> tuple[int, int]:
    """Returns the size of the image."""
    given = fixture.input("saliency/features")
    features = joined_stages([given])
    torch.testing.assert_close(features, given[0].permute(1, 2, 0))  # unit norm already
    masks = fixture.input("saliency/object_masks").bool()
    size = (masks.shape[1], masks.shape[2])
    for memory_mb in (256.0, 1e-3):  # a bound that takes the rows one by one
        single = unlike_the_rest(features, memory_mb=memory_mb)
        several = unlike_the_others(features, masks, memory_mb=memory_mb)
        check("saliency/single", upsample(single, size, align_corners=False))
        check("saliency/multi", upsample(several, size, align_corners=False))
    return size


def fusion(fixture: Fixture, check: Any, size: tuple[int, int]) -> None:
    masks, scores = fixture.input("fusion/masks").bool(), fixture.input("fusion/scores")
    after = rescored(scores, masks, fixture.tensors["saliency/single"])
    check("fusion/rescored", after)
    best = after.argsort(descending=True)[: int(fixture.input("fusion/k"))]
    side = fixture.tensors["fusion/anomaly_map"].shape[-1] * fixture.stride.get("fusion/anomaly_map", 1)
    check("fusion/anomaly_map", upsample(fused(masks[best], after[best]), (side, side), align_corners=False))
    nothing = upsample(
        fused(masks[:0], rescored(scores[:0], masks[:0], torch.zeros(size))), (side, side), align_corners=False
    )
    check("fusion/empty_map", nothing)


def test_stages_are_enlarged_to_the_nearest() -> None:
    fine, coarse = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 2, 2)
    joined = joined_stages([fine, coarse])
    assert joined.shape == (4, 4, 5)
    expected: Tensor = torch.cat([fine[0, :, 3, 1], coarse[0, :, 1, 0]])
    torch.testing.assert_close(joined[3, 1], F.normalize(expected, dim=0))
