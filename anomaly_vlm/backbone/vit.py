"""`ViTBackbone`: a frozen ViT without texts (DINOv2, DINOv3, SigLIP 2, SAM), behind `ClipBackbone`'s token interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from anomaly_vlm.backbone.frozen import FrozenTower
from anomaly_vlm.backbone.positions import POS_RESIZE, PosResize, resize_positions
from anomaly_vlm.backbone.taps import BlockTaps, ImagePatches, Tap
from anomaly_vlm.backbone.timm_weights import load_timm
from anomaly_vlm.errors import UserError, unknown_choice


class ViTBackbone(FrozenTower, BlockTaps):
    """A frozen plain ViT of timm.

    Args:
        model: timm's `VisionTransformer`, `VisionTransformerSAM` or `Eva` (DINOv3), which take images of any size.
        image_size: Side in pixels of square inputs by default.
        layers: 1-based blocks that methods tap by default; None: quarters of the depth.
        pos_resize: How a learned position table is interpolated to other grids (see `resize_positions`). `timm`: by timm
            itself, bicubic with antialias.
        name: See `FrozenTower`.
        weights: See `FrozenTower`.
        mean: See `FrozenTower`.
        std: See `FrozenTower`.
        is_random: See `FrozenTower`.

    Raises:
        UserError: The model is no such ViT, or has no such block.
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
        pos_resize: PosResize | Literal["timm"] = "timm",
        is_random: bool = False,
    ) -> None:
        super().__init__(name=name, weights=weights, mean=mean, std=std, is_random=is_random)
        if not all(hasattr(model, part) for part in ("blocks", "patch_embed", "forward_intermediates")):
            raise UserError(
                f"backbone '{name}' ({type(model).__name__}) is no plain ViT of timm: choose one such as"
                " vit_small_patch14_dinov2 or samvit_large_patch16"
            )
        if pos_resize not in ("timm", *POS_RESIZE):
            raise unknown_choice("backbone.pos_resize", str(pos_resize), ("timm", *POS_RESIZE))
        self.visual, self.pos_resize = model, pos_resize
        if pos_resize != "timm":
            self._check_positions()
            model._pos_embed = self._with_positions  # what timm's forward passes ask for the positions
        self.requires_grad_(False).eval()
        self.patch_size: int = model.patch_embed.patch_size[0]
        self.width: int = model.embed_dim
        self.num_layers = len(model.blocks)
        self.image_size = self.checked_size(image_size)
        self.layers = self.checked_layers(layers or self.quarters)

    def cache_key(self) -> dict[str, str]:
        """What cached tokens depend on besides the weights, the input size and the layers."""
        return {} if self.pos_resize == "timm" else {"positions": self.pos_resize}

    def encode_image(self, images: Tensor, *, layers: Sequence[int] = ()) -> ImagePatches:
        """`encode_patches` of the raw outputs of blocks."""
        return self.encode_patches(images, layers=layers)

    def encode_patches(self, images: Tensor, *, layers: Sequence[int], tap: Tap = "raw") -> ImagePatches:
        """Runs the tower up to the last requested block.

        Args:
            images: [B, 3, H, W] normalised; H and W multiples of the patch size.
            layers: 1-based blocks; 0 for the patch embedding's output before class token and positions, raw under any `tap`.
            tap: `raw` block outputs, or `norm`: after the tower's final norm.

        Raises:
            UserError: `tap` is `projected`, or `norm` on a tower without a final norm (SAM).
        """
        norm = getattr(self.visual, "norm", None)
        if tap == "projected" or (tap == "norm" and not isinstance(norm, torch.nn.Module)):
            raise UserError(
                f"{self.name} has no {'projection' if tap == 'projected' else 'final norm'}: choose tap=raw"
            )
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        taps = sorted(set(layers) - {0})
        patches: dict[int, Tensor] = {}
        classes: dict[int, Tensor] = {}
        for layer, found, prefix in zip(taps, *self._taps(images, taps, norm=tap == "norm"), strict=True):
            patches[layer] = found.flatten(2).transpose(1, 2)  # [B, Dv, rows, columns] -> [B, N, Dv]
            has_class = prefix is not None and prefix.shape[1] and getattr(self.visual, "cls_token", None) is not None
            classes[layer] = prefix[:, 0] if has_class else patches[layer].mean(dim=1)
        if 0 in layers:
            patches[0] = self.visual.patch_embed(images).flatten(1, -2)
            classes[0] = patches[0].mean(dim=1)
        return ImagePatches([patches[layer] for layer in layers], [classes[layer] for layer in layers], grid)

    def _taps(self, images: Tensor, taps: Sequence[int], *, norm: bool) -> tuple[list[Tensor], list[Any]]:
        """Maps [B, Dv, rows, columns] and prefix tokens [B, P, Dv] (class token first; None: there are none) of blocks."""
        if not taps:
            return [], []
        options: dict[str, Any] = {"norm": norm, "stop_early": True, "intermediates_only": True}
        if not hasattr(self.visual, "num_prefix_tokens"):  # SAM
            maps = self.visual.forward_intermediates(images, indices=[layer - 1 for layer in taps], **options)
            return list(maps), [None] * len(taps)
        found = self.visual.forward_intermediates(
            images, indices=[layer - 1 for layer in taps], return_prefix_tokens=True, **options
        )
        pairs = [entry if isinstance(entry, tuple) else (entry, None) for entry in found]
        return [maps for maps, _ in pairs], [prefix for _, prefix in pairs]

    def _check_positions(self) -> None:
        table = getattr(self.visual, "pos_embed", None)
        if not hasattr(self.visual, "_pos_embed") or table is None or table.ndim != 3:
            raise UserError(
                f"backbone.pos_resize is {self.pos_resize}: {self.name} has no table of positions; set timm"
            )

    def _with_positions(self, x: Tensor) -> Tensor:
        """Patches [B, rows, columns, Dv] with positions by `pos_resize`, behind class and register tokens [B, P + N, Dv]."""
        model, grid = self.visual, (x.shape[1], x.shape[2])
        table = model.pos_embed[0]
        if model.no_embed_class:  # registers and class token have no positions
            table = torch.cat([table.new_zeros(1, table.shape[1]), table])
        assert self.pos_resize != "timm"
        positions = resize_positions(table.detach(), grid, self.pos_resize)
        prefix = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
        if not model.no_embed_class:
            prefix[0] = prefix[0] + positions[:1]
        return torch.cat([*prefix, x.flatten(1, 2) + positions[1:]], dim=1)


def load_vit(
    name: str,
    *,
    pretrained: str | None = None,
    weights: str | None = None,
    random_seed: int | None = None,
    image_size: int = 518,
    layers: Sequence[int] | None = None,
    pos_resize: PosResize | Literal["timm"] = "timm",
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
        pos_resize: See `ViTBackbone`.
        origin: See `load_timm`.
        sizes: Sizes of an architecture of one's own (`depth`, `embed_dim`, ...); None: the named one's.

    Raises:
        UserError: See `load_timm` and `ViTBackbone`.
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
        pos_resize=pos_resize,
        is_random=random_seed is not None,
    )
