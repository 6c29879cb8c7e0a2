"""Ground-truth regions: connected components of `mask == 1`, their weights, and what lies in their holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from anomaly_vlm.metrics._engine.inputs import Image
from anomaly_vlm.metrics._engine.options import PixelOptions

FULL = np.ones((3, 3), dtype=bool)  # 8-connectivity
CROSS = ndimage.generate_binary_structure(2, 1)  # 4-connectivity


class Regions(NamedTuple):
    """The regions of one mask. M anomalous pixels in row-major order, C connectivities.

    Attributes:
        weights: [C, M] float64, `1 / |region|` of each anomalous pixel's region.
        counts: number of regions for each connectivity.
        hole_pixels: [Q] flat indices into the image of pixels inside a region's outline that are not of the region; a
            pixel inside two outlines comes twice.
        hole_weights: [Q] `1 / |region|` of the region whose hole it is.
    """

    weights: np.ndarray
    counts: tuple[int, ...]
    hole_pixels: np.ndarray
    hole_weights: np.ndarray


def bounding_box(anomalous: np.ndarray) -> tuple[slice, slice]:
    """Smallest box around the True pixels of `anomalous` [H, W], which has at least one."""
    rows = np.flatnonzero(anomalous.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(anomalous[top:bottom].any(axis=0))
    return slice(top, bottom), slice(int(columns[0]), int(columns[-1]) + 1)


def find_regions(anomalous: np.ndarray, connectivity: tuple[int, ...] = (8,), *, holes: bool = False) -> Regions:
    """Labels the components of a mask on its bounding box.

    Args:
        anomalous: [H, W] bool with at least one True.
        connectivity: 8, 4, both or none.
        holes: also collect the holes of the 8-connected regions (for `legacy_filled`).
    """
    box = bounding_box(anomalous)
    inside = anomalous[box]
    weights = np.empty((len(connectivity), int(np.count_nonzero(inside))))
    counts = []
    for row, kind in zip(weights, connectivity, strict=True):
        labels, count = ndimage.label(inside, structure=FULL if kind == 8 else CROSS)
        at_pixels = labels[inside]
        areas = np.bincount(at_pixels, minlength=count + 1)
        areas[0] = 1  # no pixel of interest is background
        row[:] = (1.0 / areas)[at_pixels]
        counts.append(count)
    hole_pixels, hole_weights = _holes(inside, box, anomalous.shape[1]) if holes else (NO_PIXELS, NO_WEIGHTS)
    return Regions(weights, tuple(counts), hole_pixels, hole_weights)


NO_PIXELS, NO_WEIGHTS = np.empty(0, np.int64), np.empty(0, np.float64)


def _holes(inside: np.ndarray, box: tuple[slice, slice], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat pixels and weights of all holes. A hole is background that no 8-connected path joins to the outside."""
    enclosed = _filled(inside) & ~inside
    if not enclosed.any():  # a region inside another one's hole is parted from it by enclosed background
        return NO_PIXELS, NO_WEIGHTS
    labels, _ = ndimage.label(inside, structure=FULL)
    pixels, weights = [], []
    for number, part in enumerate(ndimage.find_objects(labels), start=1):
        if not enclosed[part].any():
            continue
        region = labels[part] == number
        rows, columns = np.nonzero(_filled(region) & ~region)
        flat = (rows + part[0].start + box[0].start) * width + columns + part[1].start + box[1].start
        pixels.append(flat)
        weights.append(np.full(flat.size, 1.0 / np.count_nonzero(region)))
    return np.concatenate([NO_PIXELS, *pixels]), np.concatenate([NO_WEIGHTS, *weights])


def _filled(region: np.ndarray) -> np.ndarray:
    """`region` [H, W] with its holes: all that the background around it does not reach over 8 neighbours."""
    background, count = ndimage.label(np.pad(~region, 1, constant_values=True), structure=FULL)
    if count == 1:
        return region
    return (background != background[0, 0])[1:-1, 1:-1]


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
