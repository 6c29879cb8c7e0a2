"""One checked image taken apart: normal scores, anomalous scores with their regions' weights, scores in holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.metrics._inputs import Image
from anomaly_vlm.metrics._options import PixelOptions
from anomaly_vlm.metrics._regions import NO_PIXELS, NO_WEIGHTS, Regions, find_regions


@dataclass
class Split:
    """Parts of an image; M anomalous pixels, C connectivities, Q pixels in holes. Scores may share memory with the map.

    Attributes:
        normals: 1-D pieces that together hold every normal score.
        scores: [M], weights: [C, M] `1 / |region|`, regions: number of regions for each connectivity.
        hole_scores, hole_weights: [Q], with `legacy` only.
    """

    normals: list[np.ndarray] | list[Tensor]
    scores: np.ndarray
    weights: np.ndarray
    regions: tuple[int, ...]
    hole_scores: np.ndarray
    hole_weights: np.ndarray


def split(image: Image, options: PixelOptions) -> Split:
    """Regions are found only where the mask has a 1."""
    flat, mask = image.scores.reshape(-1), image.mask
    if image.on_device is not None:
        normals: list[np.ndarray] | list[Tensor] = [_on_device(image.on_device, mask)]
        if mask is not None:
            flat = image.on_device.reshape(-1).cpu().numpy()
    else:
        normals = _normal_pieces(image.scores, mask)
    found, regions = flat[:0], _no_regions(len(options.connectivity))
    if mask is not None:
        anomalous = mask == 1 if image.has_void else mask.view(np.bool_)
        if not image.has_void or anomalous.any():
            found = flat[anomalous.reshape(-1)]
            regions = find_regions(anomalous, options.connectivity, holes=options.legacy)
    return Split(normals, found, regions.weights, regions.counts, flat[regions.hole_pixels], regions.hole_weights)


def _normal_pieces(scores: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
    """Rows that are all normal stay as they are; only the rows between are looked through."""
    if mask is None:
        return [scores.reshape(-1)]
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    between = scores[top:bottom][mask[top:bottom] == 0]
    return [scores[:top].reshape(-1), between, scores[bottom:].reshape(-1)]


def _on_device(scores: Tensor, mask: np.ndarray | None) -> Tensor:
    return scores.reshape(-1) if mask is None else scores[torch.from_numpy(mask == 0).to(scores.device)]


def _no_regions(connectivities: int) -> Regions:
    return Regions(np.empty((connectivities, 0)), (0,) * connectivities, NO_PIXELS, NO_WEIGHTS)
