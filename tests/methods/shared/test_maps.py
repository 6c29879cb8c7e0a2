"""Anomaly maps: upsampling that learns is the same interpolation; smoothing is SciPy's, or a convolution's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from anomaly_vlm.methods.shared.maps import gaussian_kernel_smooth, gaussian_smooth, upsample


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


@pytest.mark.parametrize("sigma", [0.4, 1.5, 4.0])
@pytest.mark.parametrize("size", [(40, 33), (33, 100), (5, 9), (1, 2)])
def test_smoothing_is_that_of_scipy(size: tuple[int, int], sigma: float) -> None:
    """Also where the kernel is longer than the map, which is then reflected several times."""
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    wanted = np.stack([scipy.ndimage.gaussian_filter(one.double().numpy(), sigma) for one in maps])
    np.testing.assert_allclose(gaussian_smooth(maps, sigma).numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 33), (17, 70)])
def test_smoothing_by_a_kernel_is_a_convolution(size: tuple[int, int]) -> None:
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    distance = torch.arange(33, dtype=torch.float64) - 16
    weights = torch.exp(-(distance**2) / (2 * 4.0**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    wanted = F.conv2d(F.pad(maps.double()[:, None], (16,) * 4, mode="reflect"), kernel[None, None])[:, 0]
    torch.testing.assert_close(gaussian_kernel_smooth(maps, 33, 4.0), wanted.float(), rtol=0, atol=1e-6)
