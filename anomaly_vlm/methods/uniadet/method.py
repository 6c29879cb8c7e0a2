"""UniADet: what a text encoder supplies are two directions, normal and abnormal; they are learned directly instead.

Gao, Wang, "One Language-Free Foundation Model Is Enough for Universal Vision Anomaly Detection", arXiv 2601.05552. The
authors' code is not released. Formulas are those known from notes on the paper and the official README; where these are
silent, a third party's program with published logs decides (github.com/CreatedTRYNA/UniADet_unofficial). Temperature, weight
decay, `space` and the image score of the paper's zero-shot rows are not known for certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, Tap, ViTBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask, wants_masks
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.category_memory import MemoryMethod
from anomaly_vlm.methods.shared.layers import Layers, share_of_depth, tapped_layers
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.options import Fraction, PositiveFloat, PositiveInt

BLOCKS, DEPTH = (12, 15, 18, 21, 24), 24  # the paper's, of ViT-L
Space = Literal["auto", "joint", "width"]


class UniADet(MemoryMethod):
    """Learns a normal and an abnormal direction for each level and task (4 L D parameters).

    With references, patches are also compared with theirs.

    Args:
        backbone: CLIP ViT-L/14-336, DINOv2 with registers ViT-L/14 or DINOv3 ViT-L/16 as in the paper, or any other ViT.
        layers: 1-based blocks, 0 for the patch embedding; see `tapped_layers`. None: the paper's 12, 15, 18, 21, 24 of 24,
            at the same shares of other depths.
        space: Features of a CLIP: in the `joint` space of its projection, or in the `width` of the tower. `auto`: joint
            where the tower has a projection.
        tokens: Blocks after the tower's `final_norm`, or `raw` (then in the tower's width).
        temperature: Divides the cosines; a third party's value.
        image_score: How class token and map make the image score. `layers`: mean over the levels of both. `final`: the map's
            maximum after the mean over the levels. `class`: the class token alone.
        map_weight: Weight of the map in the image score.
        few_shot_weight: Weight of the distances to the references in the map.
        few_shot_base: What the map's maximum is joined with under references: the `class` score, or the `zero_shot` score.
        reduce: Whether losses are averaged over the levels (map losses also over focal and dice) or summed. With Adam the
            two train alike, since its steps do not depend on the scale of the loss.
        normal_dice: Whether the dice loss of the normal map is added.
        loss_size: Side in pixels at which maps and masks (nearest) are compared in training; None: the input's. Smaller ones
            make a step cheaper.
        init_std: Standard deviation of the directions at the start, which `seed` draws.
        base: See `MemoryMethod`.

    Raises:
        UserError: The tower does not have the blocks, or has no projection for `space="joint"`.
    """

    backbone_types = (ViTBackbone, ClipBackbone)
    color_range = (0.0, 1.0)
    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "ce": PROBABILITY,
        "focal": PROBABILITY,
        "dice": frozenset({"dice"}),
    }

    def __init__(
        self,
        backbone: Any,
        *,
        layers: Layers = None,
        space: Space = "auto",
        tokens: Literal["final_norm", "raw"] = "final_norm",
        temperature: PositiveFloat = 0.07,
        image_score: Literal["layers", "final", "class"] = "layers",
        map_weight: Fraction = 0.5,
        few_shot_weight: Fraction = 0.5,
        few_shot_base: Literal["class", "zero_shot"] = "class",
        reduce: Literal["mean", "sum"] = "mean",
        normal_dice: bool = False,
        loss_size: PositiveInt | None = None,
        init_std: PositiveFloat = 0.02,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        chosen = share_of_depth(backbone, BLOCKS, DEPTH) if layers is None else layers
        self.layers = tapped_layers(backbone, chosen, embedding=True)
        self.tap = _tap(backbone, space, tokens)
        self.temperature, self.image_score, self.map_weight = temperature, image_score, map_weight
        self.few_shot_weight, self.few_shot_base = few_shot_weight, few_shot_base
        self.reduce, self.normal_dice, self.loss_size = reduce, normal_dice, loss_size
        generator = torch.Generator().manual_seed(self.seed)
        self.cls_weights, self.seg_weights = nn.ParameterDict(), nn.ParameterDict()
        for layer in self.layers:
            width = backbone.embed_dim if self.tap == "projected" and layer else backbone.width
            for weights in (self.cls_weights, self.seg_weights):  # rows: normal, abnormal
                weights[f"layer_{layer}"] = nn.Parameter(init_std * torch.randn(2, width, generator=generator))

    # ---- the tower: frozen -------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"uniadet": list(self.layers), "tap": self.tap}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]` to `cls_L` `[M, D]` and `patches_L` `[M, N, D]` for each block L, unit norm."""
        found = self.backbone.encode_patches(images, layers=self.layers, tap=self.tap)
        classes = {f"cls_{layer}": unit(cls) for layer, cls in zip(self.layers, found.cls, strict=True)}
        return classes | {f"patches_{i}": unit(patches) for i, patches in zip(self.layers, found.patches, strict=True)}

    def memory_token_names(self) -> list[str]:
        return [f"patches_{layer}" for layer in self.layers]

    # ---- scores ------------------------------------------------------------------------------------------------------

    def class_probabilities(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Abnormal probabilities `[L, B]` of the class tokens."""
        logits = [self._logit(tokens[f"cls_{i}"], self.cls_weights[f"layer_{i}"]) for i in self.layers]
        return torch.stack(logits).sigmoid()

    def layer_maps(self, tokens: Mapping[str, Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Abnormal probabilities `[L, B, H, W]` of the pixels; logits are upsampled before they become probabilities.

        Args:
            tokens: As `encode_frozen` returns them.
            grid: Rows and columns of patches.
            size: H and W.
        """
        logits = [self._logit(tokens[f"patches_{i}"], self.seg_weights[f"layer_{i}"]) for i in self.layers]
        return upsample(to_grid(torch.stack(logits), grid), size, align_corners=False).sigmoid()

    def _logit(self, features: Tensor, weights: Tensor) -> Tensor:
        """The abnormal logit minus the normal one, whose sigmoid is the softmax of the two.

        Args:
            features: Unit features `[..., D]`.
            weights: Normal and abnormal direction `[2, D]`, any norm.
        """
        normal, abnormal = unit(weights.float())
        return product(features, abnormal - normal) / self.temperature

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of this height and width."""
        return self.backbone.grid_of(size)

    def zero_shot_scores(self, classes: Tensor, maps: Tensor) -> Tensor:
        """Image scores `[B]` of class probabilities `[L, B]` and maps `[L, B, H, W]`."""
        w = self.map_weight
        if self.image_score == "class":
            return classes.mean(dim=0)
        if self.image_score == "final":
            return (1 - w) * classes.mean(dim=0) + w * maps.mean(dim=0).flatten(1).amax(dim=1)
        return ((1 - w) * classes + w * maps.flatten(2).amax(dim=2)).mean(dim=0)

    def distances(self, tokens: Mapping[str, Tensor], batch: Batch) -> Tensor | None:
        """Distances `1 - cos` `[L, B, N]` to the nearest patches of each image's category; None without references."""
        rows = []
        for row, category in enumerate(batch.category):
            if (memory := self.memory(category)) is None:
                return None
            rows.append(torch.stack([2 * memory[name](tokens[name][row]) for name in self.memory_token_names()]))
        return torch.stack(rows, dim=1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        tokens = self.frozen_tokens(batch)
        classes = self.class_probabilities(tokens)
        maps = self.layer_maps(tokens, self.grid_of(batch.size), batch.size)
        joined, score = maps.mean(dim=0), self.zero_shot_scores(classes, maps)
        if (distances := self.distances(tokens, batch)) is None:
            return Prediction(score, joined)
        joined = self.with_references(joined, distances, batch.size)
        return Prediction(self.few_shot_scores(classes, score, joined), joined)

    def with_references(self, maps: Tensor, distances: Tensor, size: tuple[int, int]) -> Tensor:
        """Joins zero-shot maps `[B, H, W]` with distances `[L, B, N]`."""
        v = self.few_shot_weight
        grids = to_grid(distances.mean(dim=0), self.grid_of(size))
        return (1 - v) * maps + v * upsample(grids, size, align_corners=False)

    def few_shot_scores(self, classes: Tensor, zero_shot: Tensor, maps: Tensor) -> Tensor:
        """Image scores `[B]` of class probabilities `[L, B]`, zero-shot scores `[B]` and joined maps `[B, H, W]`."""
        other = classes.mean(dim=0) if self.few_shot_base == "class" else zero_shot
        return (1 - self.map_weight) * other + self.map_weight * maps.flatten(1).amax(dim=1)

    # ---- learning ----------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` of the class tokens, `focal` and `dice` of the maps."""
        tokens, values = self.frozen_tokens(batch), {}
        if wants_masks(self.terms):
            mask = training_mask(batch.mask, batch.path, self.terms)
            if self.loss_size is not None:
                mask = F.interpolate(mask[:, None], (self.loss_size, self.loss_size))[:, 0]
            maps = self.layer_maps(tokens, self.grid_of(batch.size), (mask.shape[-2], mask.shape[-1]))
            values = map_losses(self.terms, maps, mask, dice_of_normal=self.normal_dice)
        count = len(self.layers)
        if self.reduce == "mean":
            values = {name: value / (2 * count) for name, value in values.items()}
        if (ce := self.terms.get("ce")) is not None:
            each = torch.stack([ce(level, batch.label).mean() for level in self.class_probabilities(tokens)])
            values["ce"] = each.mean() if self.reduce == "mean" else each.sum()
        return values


def unit(features: Tensor) -> Tensor:
    """Features `[..., D]` at norm 1; zeros stay zeros."""
    return F.normalize(features, dim=-1, eps=1e-6)


def _tap(backbone: ClipBackbone | ViTBackbone, space: Space, tokens: str) -> Tap:
    """Where the tower is tapped."""
    has_projection = isinstance(backbone, ClipBackbone)
    if space == "joint" and not has_projection:
        raise UserError(f"method.space is joint: {backbone.name} has no projection, set width or auto")
    if tokens == "raw":
        if space == "joint":
            raise UserError("method.space is joint, where tokens are normalised and projected: set tokens=final_norm")
        return "raw"
    return "projected" if has_projection and space != "width" else "norm"
