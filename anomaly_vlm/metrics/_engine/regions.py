"""Ground-truth regions, and one image split into normal scores, anomalous scores with region weights, and hole scores.

A region is a connected component of `mask == 1`. Void pixels (255) belong to no region, so a void band cuts a region in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from anomaly_vlm.metrics._engine.inputs import CheckedImage, PixelOptions

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
FOUR_NEIGHBOURS = ndimage.generate_binary_structure(2, 1)
NO_PIXELS, NO_WEIGHTS = np.empty(0, np.int64), np.empty(0, np.float64)


class Regions(NamedTuple):
    """The regions of one mask; M anomalous pixels in row-major order, C connectivities, Q hole pixels.

    Attributes:
        weights: `[C, M]` float64, `1 / |region|` of the region that each anomalous pixel belongs to.
        counts: Number of regions for each connectivity.
        hole_pixels: `[Q]` int64 flat positions in the image of pixels that lie inside a region's outline without belonging
            to the region; a pixel inside two outlines occurs twice.
        hole_weights: `[Q]` float64, `1 / |region|` of the region in whose hole each of these pixels lies.
    """

    weights: np.ndarray
    counts: tuple[int, ...]
    hole_pixels: np.ndarray
    hole_weights: np.ndarray


def bounding_box(anomalous: np.ndarray) -> tuple[slice, slice]:
    """Returns the rows and columns of the smallest box around the True pixels of a mask.

    Args:
        anomalous: `[H, W]` bool with at least one True pixel.
    """
    rows = np.flatnonzero(anomalous.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(anomalous[top:bottom].any(axis=0))
    return slice(top, bottom), slice(int(columns[0]), int(columns[-1]) + 1)


def find_regions(anomalous: np.ndarray, connectivity: tuple[int, ...] = (8,), *, holes: bool = False) -> Regions:
    """Labels the connected components of a mask, inside its bounding box only.

    Args:
        anomalous: `[H, W]` bool with at least one True pixel.
        connectivity: 8, 4, both or none.
        holes: Whether to collect the holes of the 8-connected regions too, which `legacy_filled` needs.
    """
    box = bounding_box(anomalous)
    inside = anomalous[box]
    weights = np.empty((len(connectivity), int(np.count_nonzero(inside))))
    counts = []
    for row, neighbours in zip(weights, connectivity, strict=True):
        labels, count = ndimage.label(inside, structure=EIGHT_NEIGHBOURS if neighbours == 8 else FOUR_NEIGHBOURS)
        labels_inside = labels[inside]
        areas = np.bincount(labels_inside, minlength=count + 1)
        areas[0] = 1  # label 0 is the background, which no anomalous pixel has
        row[:] = (1.0 / areas)[labels_inside]
        counts.append(count)
    hole_pixels, hole_weights = _find_holes(inside, box, anomalous.shape[1]) if holes else (NO_PIXELS, NO_WEIGHTS)
    return Regions(weights, tuple(counts), hole_pixels, hole_weights)


def _find_holes(inside: np.ndarray, box: tuple[slice, slice], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the holes of all regions: background that no 8-connected path joins to the outside.

    Args:
        inside: `[h, w]` bool, the mask inside its bounding box.
        box: The bounding box.
        width: Width of the image in pixels.

    Returns:
        The flat positions in the image `[Q]` and the weights `[Q]` of the hole pixels.
    """
    enclosed = _fill(inside) & ~inside
    if not enclosed.any():  # enclosed background also surrounds every region that lies in the hole of another one
        return NO_PIXELS, NO_WEIGHTS
    labels, _ = ndimage.label(inside, structure=EIGHT_NEIGHBOURS)
    pixels, weights = [], []
    for number, region_box in enumerate(ndimage.find_objects(labels), start=1):
        if not enclosed[region_box].any():
            continue
        region = labels[region_box] == number
        rows, columns = np.nonzero(_fill(region) & ~region)
        flat = (rows + region_box[0].start + box[0].start) * width + columns + region_box[1].start + box[1].start
        pixels.append(flat)
        weights.append(np.full(flat.size, 1.0 / np.count_nonzero(region)))
    return np.concatenate([NO_PIXELS, *pixels]), np.concatenate([NO_WEIGHTS, *weights])


def _fill(region: np.ndarray) -> np.ndarray:
    """Returns `region` `[H, W]` with its holes: all that the background around it does not reach over 8 neighbours."""
    background, count = ndimage.label(np.pad(~region, 1, constant_values=True), structure=EIGHT_NEIGHBOURS)
    if count == 1:
        return region
    filled: np.ndarray = (background != background[0, 0])[1:-1, 1:-1]
    return filled


@dataclass
class SplitImage:
    """The pixels of one image by what they are; M anomalous pixels, C connectivities, Q pixels in holes.

    Scores may share memory with the caller's map. Scores of half-precision maps are bit patterns.

    Attributes:
        normals: One-dimensional arrays or tensors that together hold every normal score.
        scores: `[M]` scores of the anomalous pixels.
        weights: `[C, M]` float64, `1 / |region|` of each anomalous pixel's region.
        regions: Number of regions for each connectivity.
        hole_scores: `[Q]` scores of the pixels in holes; empty without the option `legacy`.
        hole_weights: `[Q]` float64 weights of the pixels in holes.
    """

    normals: list[np.ndarray] | list[Tensor]
    scores: np.ndarray
    weights: np.ndarray
    regions: tuple[int, ...]
    hole_scores: np.ndarray
    hole_weights: np.ndarray


def split_image(image: CheckedImage, options: PixelOptions) -> SplitImage:
    """Splits a checked image; regions are looked for only where the mask has a 1."""
    flat, mask = image.scores.reshape(-1), image.mask
    if image.on_device is not None:
        normals: list[np.ndarray] | list[Tensor] = [_normals_on_device(image.on_device, mask)]
        if mask is not None:
            flat = image.on_device.reshape(-1).cpu().numpy()
    else:
        normals = _normals(image.scores, mask)
    connectivities = len(options.connectivity)
    scores = flat[:0]
    regions = Regions(np.empty((connectivities, 0)), (0,) * connectivities, NO_PIXELS, NO_WEIGHTS)
    if mask is not None:
        anomalous = mask == 1 if image.has_void else mask.view(np.bool_)
        if not image.has_void or anomalous.any():
            scores = flat[anomalous.reshape(-1)]
            regions = find_regions(anomalous, options.connectivity, holes=options.legacy)
    return SplitImage(normals, scores, regions.weights, regions.counts, flat[regions.hole_pixels], regions.hole_weights)


def _normals(scores: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
    """Returns arrays that hold the normal scores of `[H, W]` scores.

    Rows above the first and below the last marked row are wholly normal and are not copied; only the rows between are
    searched.
    """
    if mask is None:
        return [scores.reshape(-1)]
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    between = scores[top:bottom][mask[top:bottom] == 0]
    return [scores[:top].reshape(-1), between, scores[bottom:].reshape(-1)]


def _normals_on_device(scores: Tensor, mask: np.ndarray | None) -> Tensor:
    """Returns the normal scores of `[H, W]` scores on an accelerator, on that accelerator."""
    return scores.reshape(-1) if mask is None else scores[torch.from_numpy(mask == 0).to(scores.device)]
