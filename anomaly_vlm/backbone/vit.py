"""`ViTBackbone`: a frozen ViT without a text half (DINOv2, SAM's image encoder), behind `ClipBackbone`'s token interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anomaly_vlm.backbone.frozen import FrozenTower
from anomaly_vlm.backbone.taps import BlockTaps
from anomaly_vlm.backbone.timm_weights import load_timm
from anomaly_vlm.errors import UserError


@dataclass
class ImagePatches:
    """What the tower makes of a batch; N = rows x columns of `grid`.

    Attributes:
        patches: Per requested layer, in the order asked, [B, N, Dv] raw block outputs; class and register tokens
            dropped.
        grid: Rows and columns of patches.
    """

    patches: list[Tensor]
    grid: tuple[int, int]


class ViTBackbone(FrozenTower, BlockTaps):
    """A frozen plain ViT of timm.

    Args:
        model: timm's `VisionTransformer` or `VisionTransformerSAM`, which take images of any size.
        image_size: Side in pixels of square inputs by default.
        layers: 1-based blocks that methods tap by default; None: quarters of the depth.
        name: See `FrozenTower`.
        weights: See `FrozenTower`.
        mean: See `FrozenTower`.
        std: See `FrozenTower`.
        is_random: See `FrozenTower`.

    Raises:
        UserError: the model is no such ViT, or has no such block.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        weights: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        layers: Sequence[int] | None = None,
        is_random: bool = False,
    ) -> None:
        super().__init__(name=name, weights=weights, mean=mean, std=std, is_random=is_random)
        if not all(hasattr(model, part) for part in ("blocks", "patch_embed", "forward_intermediates")):
            raise UserError(
                f"backbone '{name}' ({type(model).__name__}) is no plain ViT of timm: choose one such as"
                " vit_small_patch14_dinov2 or samvit_large_patch16"
            )
        self.visual = model
        self.requires_grad_(False).eval()
        self.patch_size: int = model.patch_embed.patch_size[0]
        self.width: int = model.embed_dim
        self.num_layers = len(model.blocks)
        self.image_size = self.checked_size(image_size)
        self.layers = self.checked_layers(layers or self.quarters)

    def encode_image(self, images: Tensor, *, layers: Sequence[int] = ()) -> ImagePatches:
        """Runs the tower up to the last requested block.

        Args:
            images: [B, 3, H, W] normalised; H and W multiples of the patch size. Positions are interpolated by timm.
            layers: 1-based blocks whose patches are returned.
        """
        taps = sorted(set(layers))
        maps = self.visual.forward_intermediates(
            images, indices=[layer - 1 for layer in taps], norm=False, stop_early=True, intermediates_only=True
        )  # [B, Dv, rows, columns] each, in the order of the blocks
        by_layer = dict(zip(taps, maps, strict=True))
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return ImagePatches([by_layer[layer].flatten(2).transpose(1, 2) for layer in layers], grid)


def load_vit(
    name: str,
    *,
    pretrained: str | None = None,
    weights: str | None = None,
    random_seed: int | None = None,
    image_size: int = 518,
    layers: Sequence[int] | None = None,
    origin: str | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> ViTBackbone:
    """Builds a ViT of timm, fills it with weights and freezes it.

    Args:
        name: `vit_small_patch14_dinov2`, `samvit_large_patch16`, or another plain ViT of timm.
        pretrained: See `load_timm`.
        weights: See `load_timm`; a file may be the published `dinov2_*_pretrain.pth` or `sam_vit_*.pth`.
        random_seed: See `load_timm`.
        image_size: See `ViTBackbone`.
        layers: See `ViTBackbone`.
        origin: See `load_timm`.
        sizes: Sizes of an architecture of one's own (`depth`, `embed_dim`, ...); None: the named one's.

    Raises:
        UserError: see `load_timm` and `ViTBackbone`.
    """
    options = dict(sizes or {})
    if not name.startswith("samvit"):  # SAM's positions follow the input by themselves
        options["dynamic_img_size"] = True
    loaded = load_timm(
        name, pretrained=pretrained, weights=weights, random_seed=random_seed, origin=origin, options=options
    )
    return ViTBackbone(
        loaded.model,
        name=name,
        weights=loaded.origin,
        mean=loaded.mean,
        std=loaded.std,
        image_size=image_size,
        layers=layers,
        is_random=random_seed is not None,
    )
