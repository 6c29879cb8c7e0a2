"""SubspaceAD: patch tokens of a few normal images span a subspace; what it leaves over of a test patch is its score.

Lendering, Akdag, Bondarev, "SubspaceAD", CVPR 2026, arXiv 2602.23013; code github.com/CLendering/SubspaceAD. The published
program turns the references of every category but `transistor` (`no_rotation_for`), draws them a second time for the
covariance (`draws="published"`), and its batched mode (`fit_on="test"`) fits to the test images themselves.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, Tap, ViTBackbone
from anomaly_vlm.data.types import Batch, References
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.transductive import Transductive
from anomaly_vlm.methods.shared.category_memory import CategoryMethod, category_key, category_name, of_categories
from anomaly_vlm.methods.shared.foreground import MaskOptions, foreground
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import gaussian_kernel_smooth, top_share_mean, upsample
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.methods.shared.turned import turn_black
from anomaly_vlm.methods.subspacead.subspace import NormalSubspace, Residual, TokenSums
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt, Range
from anomaly_vlm.texts import table_key

log = logging.getLogger("anomaly_vlm")
ANGLES = (0.0, 345.0)  # degrees between which copies are turned
Share = Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)]


class SubspaceAD(FrozenTokens, CategoryMethod, Transductive):
    """Keeps one mean and one basis of each category. Nothing is learned.

    Args:
        backbone: DINOv2 giant with registers at 672 px as published, or any other ViT, also the image tower of a CLIP.
        layers: 1-based blocks whose patches are combined, 0 for the patch embedding; see `tapped_layers`. None: those from
            55 to 70 % of the depth (23 to 29 of 40), the published ones.
        aggregate: How the blocks are combined: their `mean`, `concat`, or `group`: the mean within each of `layer_groups`,
            concatenated.
        layer_groups: Lists of 1-based blocks.
        tap: `raw`: the blocks' outputs, as published. `norm`: after the tower's final norm.
        explained: Share of the variance that sets the dimension of the subspace.
        dimension: The dimension itself; None for `explained`.
        rotations: Turned copies of each reference, by angles from 0 to 345 degrees that depend on the seed, the category and
            the image alone.
        no_rotation_for: Categories whose references are not turned; published: `[transistor]`, a choice made for a test
            category.
        draws: `paper`: mean and covariance of the same copies. `published`: the covariance of others, by other angles.
        residual: See `NormalSubspace.residual`; published: `reconstruction`.
        drop: See `NormalSubspace.residual`.
        masking: Whether patches outside the foreground of a test image have residual 0.
        mask: How the foreground is found; the threshold has the units of the combined tokens.
        kernel: Odd side in pixels of the Gaussian that smooths the map; 1 for none.
        sigma: Its standard deviation in pixels.
        image_score: How the image score follows from the map: the mean of the largest hundredth (`mtop1p`) or of the largest
            five pixels (`mtop5`), the `max`, the `mean`, or the 99th percentile (`p99`).
        fit_on: `references`, or `test`: the published batched mode, in which the subspace is that of all test images of a
            category. It needs no references and is transductive.
        eps: See `NormalSubspace.residual`.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The tower does not have the blocks, or options contradict each other.
    """

    backbone_types = (ViTBackbone, ClipBackbone)
    color_range = "per_image"  # residuals have the units of the tokens

    def __init__(
        self,
        backbone: Any,
        *,
        layers: Layers = None,
        aggregate: Literal["mean", "concat", "group"] = "mean",
        layer_groups: Sequence[Sequence[int]] = (),
        tap: Tap = "raw",
        explained: Share = 0.99,
        dimension: PositiveInt | None = None,
        rotations: Annotated[int, AtLeast(0)] = 30,
        no_rotation_for: Sequence[str] = (),
        draws: Literal["paper", "published"] = "paper",
        residual: Residual = "reconstruction",
        drop: Annotated[int, AtLeast(0)] = 0,
        masking: bool = False,
        mask: MaskOptions = MaskOptions(),  # noqa: B008 (frozen)
        kernel: PositiveInt = 3,
        sigma: PositiveFloat = 4.0,
        image_score: Literal["mtop1p", "mtop5", "max", "mean", "p99"] = "mtop1p",
        fit_on: Literal["references", "test"] = "references",
        eps: PositiveFloat = 1e-6,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if (aggregate == "group") != bool(layer_groups):
            raise UserError("method.layer_groups and method.aggregate=group belong together: give both or none")
        if kernel % 2 == 0:
            raise UserError(f"method.kernel is {kernel}: give an odd number of pixels")
        if layer_groups:
            layers = list(dict.fromkeys(layer for group in layer_groups for layer in group))
        chosen = middle_layers(backbone.num_layers) if layers is None else layers
        self.layers = tapped_layers(backbone, chosen, embedding=True)
        self.aggregate, self.layer_groups, self.tap = aggregate, [list(group) for group in layer_groups], tap
        self.explained, self.dimension = explained, dimension
        self.rotations, self.draws = rotations, draws
        self.no_rotation_for = {table_key(category) for category in no_rotation_for}
        self.residual, self.drop, self.eps = residual, drop, eps
        self.masking, self.mask = masking, mask
        self.kernel, self.sigma, self.image_score, self.fit_on = kernel, sigma, image_score, fit_on
        self.reference_support = "required" if fit_on == "references" else "none"
        self.categories = nn.ModuleDict()  # `category_key` -> NormalSubspace

    @property
    def is_transductive(self) -> bool:
        return self.fit_on == "test"

    def display_name(self, name: str) -> str:
        return super().display_name(name) + (" (per-category switches)" if self.no_rotation_for else "")

    # ---- the tower: frozen -------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"subspacead": list(self.layers), "tap": self.tap, "aggregate": self.layer_groups or self.aggregate}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]` to `patches` `[M, N, D]`, the combined tokens of the blocks."""
        found = self.backbone.encode_patches(images, layers=self.layers, tap=self.tap).patches
        return {"patches": self.combined(dict(zip(self.layers, found, strict=True)))}

    def combined(self, patches: Mapping[int, Tensor]) -> Tensor:
        """Combines the patches `[..., Dv]` of the blocks, by their numbers, to one token a patch, `[..., D]`."""
        blocks = {layer: tokens.float() for layer, tokens in patches.items()}
        if self.aggregate == "concat":
            return torch.cat([blocks[layer] for layer in self.layers], dim=-1)
        groups = self.layer_groups or [list(self.layers)]
        return torch.cat([torch.stack([blocks[layer] for layer in group]).mean(dim=0) for group in groups], dim=-1)

    # ---- the subspace ------------------------------------------------------------------------------------------------

    def fit_category(self, references: References) -> None:
        first, second = TokenSums(), TokenSums()
        category = references.category
        for sums, draw in ((first, 0), (second, 1)) if self.draws == "published" else ((first, 0),):
            sums.add(self.frozen_tokens(references.batch)["patches"])
            for copy in range(0 if table_key(category) in self.no_rotation_for else self.rotations):
                turned = references.changed(
                    lambda pixels, number, copy=copy, draw=draw: turn_black(  # type: ignore[misc]
                        pixels, self.angle(category, number, copy, draw)
                    )
                )
                for image in turned:
                    sums.add(self.encode_frozen(image.to(self.device))["patches"])
        self.set_subspace(category, self.subspace(first, second if self.draws == "published" else first))

    def angle(self, category: str, number: int, copy: int, draw: int = 0) -> float:
        """The angle in degrees of a turned copy of a category's reference `number`; another one for each draw."""
        key = zlib.crc32(category.encode())
        return float(derived_generator(self.seed, key, number, copy, draw).uniform(*ANGLES))

    def subspace(self, first: TokenSums, second: TokenSums) -> NormalSubspace:
        """The subspace with the mean of the first draw of tokens and the covariance of the second about it."""
        covariance = second.covariance(about=first.mean)
        if self.dimension is not None and self.dimension > len(covariance):
            raise UserError(f"method.dimension is {self.dimension}: tokens have {len(covariance)} channels, give fewer")
        found = NormalSubspace.fit(first.mean, covariance, explained=self.explained, dimension=self.dimension)
        dimension, largest = found.basis.shape[1], min(len(covariance), second.count - 1)
        if dimension and self.drop >= dimension:
            raise UserError(f"method.drop is {self.drop}: the subspace has {dimension} dimensions, drop fewer")
        if dimension > 0.9 * largest or not dimension:
            log.warning(
                "subspacead: %d of at most %d dimensions explain %g of the variance, so that %s is left to measure with:"
                " more references or rotations, or a smaller method.explained, would help",
                dimension,
                largest,
                self.explained,
                "little" if dimension else "everything",
            )
        return found

    def set_subspace(self, category: str, subspace: NormalSubspace) -> None:
        """Keeps the subspace of a category."""
        self.categories[category_key(category)] = subspace.to(self.device)

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        for name, tensors in of_categories(state).items():
            if {"mean", "basis", "eigenvalues"} <= set(tensors):
                self.set_subspace(name, NormalSubspace(*(tensors[key] for key in ("mean", "basis", "eigenvalues"))))

    def fit_test_category(self, category: str, images: Sequence[Batch]) -> None:
        self.fit_to(category, (self.frozen_tokens(batch)["patches"] for batch in images))

    def fit_to(self, category: str, tokens: Iterable[Tensor]) -> None:
        """Fits the subspace of a category to tokens `[..., D]` of images, without turned copies."""
        sums = TokenSums()
        for image in tokens:
            sums.add(image)
        self.set_subspace(category, self.subspace(sums, sums))

    # ---- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        grid = self.backbone.grid_of(batch.size)
        patches = self.frozen_tokens(batch)["patches"].float()
        grids = [
            self.residuals(tokens.unflatten(0, grid), self.subspace_of(category))
            for tokens, category in zip(patches, batch.category, strict=True)
        ]
        maps = self.maps(torch.stack(grids), batch.size)
        return Prediction(self.image_scores(maps), maps)

    def subspace_of(self, category: str) -> NormalSubspace:
        """The subspace of a category.

        Raises:
            UserError: The category has none.
        """
        if (key := category_key(category)) not in self.categories:
            others = ", ".join(sorted(map(category_name, self.categories))) or "none"
            raise UserError(
                f"{type(self).__name__} has seen no normal images of category '{category}' (of: {others}): give it some"
                " (shots=1, fit_references)"
            )
        return cast("NormalSubspace", self.categories[key])

    def residuals(self, tokens: Tensor, subspace: NormalSubspace) -> Tensor:
        """Residuals `[rows, columns]` of the combined tokens `[rows, columns, D]` of an image, 0 where it is masked."""
        found = subspace.residual(tokens, kind=self.residual, drop=self.drop, eps=self.eps)
        return found * foreground(tokens, self.mask).mask if self.masking else found

    def maps(self, residuals: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps `[B, H, W]` of residuals `[B, rows, columns]`."""
        return gaussian_kernel_smooth(upsample(residuals, size, align_corners=False), self.kernel, self.sigma)

    def image_scores(self, maps: Tensor) -> Tensor:
        """Image scores `[B]` of maps `[B, H, W]`."""
        pixels = maps.flatten(1)
        if self.image_score == "p99":
            return pixels.double().quantile(0.99, dim=1).float()
        if self.image_score == "mtop5":
            return pixels.topk(min(5, pixels.shape[1]), dim=1).values.mean(dim=1)
        if self.image_score == "mtop1p":
            return top_share_mean(pixels, 0.01)
        return pixels.amax(dim=1) if self.image_score == "max" else pixels.mean(dim=1)


def middle_layers(depth: int) -> list[int]:
    """The 1-based blocks between 55 and 70 % of a tower's depth, rounded to the nearest as the published scripts do."""
    first, last = (math.floor(share * depth + 0.5) + 1 for share in (0.55, 0.70))
    return list(range(max(1, first), min(depth, last) + 1))
