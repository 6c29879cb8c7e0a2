"""Anomaly maps: upsampling that learns is the same interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_vlm.methods.shared.maps import upsample


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(30, 41), (5, 4), (4, 9)])
def test_upsampling_with_a_gradient(size: tuple[int, int], align_corners: bool) -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 2, 6, 5, requires_grad=True)
    same = maps.detach().clone().requires_grad_()
    found = upsample(maps, size, align_corners=align_corners)
    wanted = F.interpolate(same, size=size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(maps.grad, same.grad)
    with torch.no_grad():
        torch.testing.assert_close(upsample(maps, size, align_corners=align_corners), wanted)
