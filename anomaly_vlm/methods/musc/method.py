"""MuSc: a patch that finds near patches in many other test images is normal. No training, no text, no reference image.

Li, Huang, Xue, Zhou, "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the
Unlabeled Images", ICLR 2024, arXiv 2401.16753; code github.com/xrli-U/MuSc. The protocol is transductive: a score needs all
test images of a category and assumes that most of them are normal, which tables say. The published numbers stretch scores
within each category (`score_range="minmax"`, which changes no ranking there), and on VisA choose `neighbours=[1, 8, 9]`.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone, ViTBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.transductive import Transductive, image_name
from anomaly_vlm.methods.musc.scoring import ScoreRange, mutual_scores, pooled, rescored
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import AtLeast, Fraction, PositiveFloat, PositiveInt

log = logging.getLogger("anomaly_vlm")
FEWEST, ADVISED = 3, 5  # images of a category that can be scored, and that should be there


class MuSc(FrozenTokens, Transductive):
    """Scores all test images of a category against each other. Nothing is learned.

    Args:
        backbone: CLIP ViT-L/14-336 as in the paper, or any other ViT.
        layers: 1-based blocks, 0 for the patch embedding; see `tapped_layers`.
        tap: `raw`: the blocks' outputs. `norm`: after the tower's final norm. None: as published, raw on a CLIP and `norm`
            on other towers.
        degrees: Odd sides in patches of the windows over which patches are averaged.
        interval: Share of the other images, from the nearest on, at which the mean of a patch's distances starts and ends.
        neighbours: Over how many images that look alike, itself counted, image scores are averaged; empty for none.
        score_range: `raw` scores are distances. `minmax`: stretched to [0, 1] within the category, as published.
        subsets: Parts of a category, each scored within itself; `auto`: as many as keep them at `subset_size`.
        subset_size: Images of a part at most, with `auto`; it bounds memory and time.
        aligned: Radius in patches within which a patch looks for its like, for parts that always lie the same way; None:
            anywhere, as published.
        memory_mb: Bound in MB on the similarities that are held at a time.
        base: See `AnomalyMethod`. `seed` deals images to subsets.

    Raises:
        UserError: The tower does not have the blocks, or an option is out of its range.
    """

    backbone_types = (ViTBackbone, ClipBackbone)
    color_range = "per_image"

    def __init__(
        self,
        backbone: Any,
        *,
        layers: Layers = None,
        tap: Literal["raw", "norm"] | None = None,
        degrees: Sequence[PositiveInt] = (1, 3, 5),
        interval: Sequence[Fraction] = (0.0, 0.3),
        neighbours: Sequence[PositiveInt] = (1, 2, 3),
        score_range: ScoreRange = "raw",
        subsets: PositiveInt | Literal["auto"] = "auto",
        subset_size: Annotated[int, AtLeast(ADVISED)] = 200,
        aligned: Annotated[int, AtLeast(0)] | None = None,
        memory_mb: PositiveFloat = 256.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.layers = tapped_layers(backbone, layers, embedding=True)
        if not degrees or any(degree % 2 == 0 for degree in degrees):
            raise UserError(f"method.degrees is {list(degrees)}: give odd window sides, such as [1, 3, 5]")
        if len(interval) != 2 or not interval[0] < interval[1]:
            raise UserError(
                f"method.interval is {list(interval)}: give two shares, the smaller first, such as [0, 0.3]"
            )
        self.tap: Literal["raw", "norm"] = tap or ("raw" if isinstance(backbone, ClipBackbone) else "norm")
        self.degrees, self.interval = tuple(degrees), (float(interval[0]), float(interval[1]))
        self.neighbours, self.score_range = tuple(neighbours), score_range
        self.subsets, self.subset_size, self.aligned, self.memory_mb = subsets, subset_size, aligned, memory_mb
        self._scores: dict[str, Tensor] = {}  # image -> score []
        self._patch_maps: dict[str, Tensor] = {}  # image -> [N]

    # ---- the tower: frozen -------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"musc": list(self.layers), "tap": self.tap}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]` to `block_L` `[M, N, D]` for each block L, and the unit global `cls` `[M, C]`."""
        found = self.backbone.encode_patches(images, layers=[*self.layers, self.backbone.num_layers], tap=self.tap)
        blocks = {f"block_{layer}": found.patches[i] for i, layer in enumerate(self.layers)}
        return {"cls": F.normalize(self._global(found.cls[-1]), dim=-1), **blocks}

    def _global(self, cls: Tensor) -> Tensor:
        """The global feature `[M, C]` of the tapped class tokens `[M, D]` of the last block."""
        if isinstance(self.backbone, ClipBackbone):
            return self.backbone.project(cls, ln_post=self.tap == "raw")
        return cls

    # ---- all images of a category ------------------------------------------------------------------------------------

    def check_test_set(self, counts: Mapping[str, int]) -> None:
        for category, count in counts.items():
            parts = self.number_of_subsets(count)
            if count < FEWEST:
                raise UserError(
                    f"MuSc scores the images of a category against each other: '{category}' has {count}, give at least"
                    f" {ADVISED} ({FEWEST} in an emergency), or choose a method that scores images alone"
                )
            if parts > 1 and count // parts < ADVISED:
                raise UserError(
                    f"method.subsets is {parts}: '{category}' has {count} images, give at most {max(1, count // ADVISED)}"
                )
            if count < ADVISED:
                log.warning(
                    "musc: '%s' has %d images: scores are right only if one of them is defective", category, count
                )

    def number_of_subsets(self, count: int) -> int:
        """Into how many parts a category of `count` images is cut."""
        return math.ceil(count / self.subset_size) if self.subsets == "auto" else self.subsets

    def subset_of(self, category: str, count: int) -> list[int]:
        """The part of each image: dealt in turn from a permutation that depends on seed and category alone."""
        parts, found = self.number_of_subsets(count), [0] * count
        order = derived_generator(self.seed, zlib.crc32(category.encode())).permutation(count)
        for place, image in enumerate(order.tolist()):
            found[image] = place % parts
        return found

    def fit_test_category(self, category: str, images: Sequence[Batch]) -> None:
        count = len(images)
        subset = self.subset_of(category, count)
        names, keys = [""] * count, Counter[str]()
        features: list[Tensor] = [torch.empty(0)] * count
        peaks = torch.empty(count, device=self.device)
        for part in range(self.number_of_subsets(count)):
            members = [i for i in range(count) if subset[i] == part]
            tokens, sizes = [], []
            for i in members:
                batch = images[i]
                tokens.append(self.frozen_tokens(batch))
                sizes.append(batch.size)
                names[i], features[i] = image_name(batch), tokens[-1].pop("cls")[0].float()
                keys.update(key for key in batch.key if key is not None)
            size = sizes[0]
            grid = self.backbone.grid_of(size)
            patch_maps = self.patch_maps(joined(tokens), grid)
            for row, i in enumerate(members):
                self._patch_maps[names[i]] = patch_maps[row].cpu()
                peaks[i] = self.maps(patch_maps[row : row + 1], grid, size).amax()
        self._warn_of_copies(category, keys)
        scores = self.scores(peaks, torch.stack(features))
        self._scores |= {name: score.cpu() for name, score in zip(names, scores, strict=True)}

    def _warn_of_copies(self, category: str, keys: Counter[str]) -> None:
        copies = sum(number - 1 for number in keys.values() if number > 1)
        if copies:
            log.warning("musc: %d images of '%s' are copies of others, which lowers their scores", copies, category)

    def patch_maps(self, tokens: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """Scores `[n, N]` of the patches of images that are scored within themselves: means over degrees and blocks.

        Args:
            tokens: `block_L` `[n, N, D]` for each block.
            grid: Rows and columns.
        """
        found = self.mutual(tokens, grid)  # [n, degrees, layers, N]
        return found.double().mean(dim=2).mean(dim=1).float()

    def mutual(self, tokens: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """Mutual scores `[n, degrees, layers, N]` of the patches of all images of a set; arguments as of `patch_maps`."""
        aligned = None if self.aligned is None else (self.aligned, grid)
        by_degree = []
        for degree in self.degrees:
            by_layer = [
                mutual_scores(
                    pooled(tokens[f"block_{layer}"], grid, degree),
                    interval=self.interval,
                    memory_mb=self.memory_mb,
                    aligned=aligned,
                )
                for layer in self.layers
            ]
            by_degree.append(torch.stack(by_layer, dim=1))
        return torch.stack(by_degree, dim=1)

    def maps(self, patch_maps: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Maps `[n, H, W]` of scores `[n, N]` of the patches."""
        return upsample(to_grid(patch_maps, grid), size, align_corners=True)

    def scores(self, peaks: Tensor, features: Tensor) -> Tensor:
        """Image scores `[n]` of the maps' maxima `[n]` and the unit global features `[n, C]` of a whole category."""
        return rescored(peaks, features, neighbours=self.neighbours, score_range=self.score_range)

    def predict(self, batch: Batch) -> Prediction:
        names = [image_name(batch, row) for row in range(len(batch))]
        for row, name in enumerate(names):
            if name not in self._scores:
                raise self.not_seen(batch, row)
        grid = self.backbone.grid_of(batch.size)
        patch_maps = torch.stack([self._patch_maps[name] for name in names]).to(self.device)
        score = torch.stack([self._scores[name] for name in names]).to(self.device)
        return Prediction(score, self.maps(patch_maps, grid, batch.size))


def joined(tokens: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tokens `[1, N, D]` of images as `[n, N, D]` for each block, which are taken out of the images."""
    return {name: torch.cat([one.pop(name) for one in tokens]) for name in list(tokens[0])}
