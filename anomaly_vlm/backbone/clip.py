"""`ClipBackbone`: one frozen open_clip model, driven block by block, shared by every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from anomaly_vlm.backbone.blocks import Prompts, ValueAttention, run_blocks
from anomaly_vlm.backbone.frozen import Activation, FrozenClip, drivable, set_activation
from anomaly_vlm.backbone.positions import POS_RESIZE, PosResize, resize_positions
from anomaly_vlm.backbone.stem import HybridStem
from anomaly_vlm.backbone.taps import BlockTaps, ImagePatches, Tap
from anomaly_vlm.errors import UserError, unknown_choice


@dataclass
class ImageTokens:
    """What the image tower makes of a batch; N = rows x columns of `grid`.

    Attributes:
        cls: [B, C] global feature in the joint space: `ln_post` and `proj` of the class token, not normalised.
        cls_token: [B, Dv] class token after the last block, before `ln_post`.
        tokens: Per requested layer, in the order asked, [B, 1 + N, Dv] raw block outputs, class token first; on the V-V
            path from its first block on; inserted prompts stripped.
        ordinary: The same layers, always the ordinary path.
        grid: Rows and columns of patches.
    """

    cls: Tensor
    cls_token: Tensor
    tokens: list[Tensor]
    ordinary: list[Tensor]
    grid: tuple[int, int]

    @property
    def patches(self) -> list[Tensor]:
        """Per requested layer [B, N, Dv], class token dropped."""
        return [tokens[:, 1:] for tokens in self.tokens]


class ClipBackbone(FrozenClip, BlockTaps):
    """A frozen open_clip CLIP with a ViT image tower.

    Args:
        model: An `open_clip.CLIP` (or a model with the same towers) with its weights loaded.
        name: Name of the architecture, for tables and error messages.
        weights: Where the weights come from, in words: `openai`, `random weights (seed 0)`.
        activation: `gelu` (exact) or `quick_gelu`, set in both towers.
        pos_resize: How position embeddings are interpolated to other input sizes.
        mean: Mean of the RGB channels that the weights were trained with.
        std: Standard deviation of the RGB channels that the weights were trained with.
        image_size: Side of the input in pixels that methods use by default with these weights.
        layers: 1-based vision blocks that methods tap by default; default: quarters of the depth.
        tokenizer: Texts -> [N, context] token ids.
        is_random: The weights were never trained.

    Raises:
        UserError: The model has no ViT image tower that can be driven block by block.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        weights: str,
        tokenizer: Callable[[list[str]], Tensor],
        activation: Activation = "gelu",
        pos_resize: PosResize = "bicubic",
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        is_random: bool = False,
    ) -> None:
        super().__init__(
            model,
            name=name,
            weights=weights,
            tokenizer=tokenizer,
            activation=activation,
            mean=mean,
            std=std,
            is_random=is_random,
        )
        if pos_resize not in POS_RESIZE:
            raise unknown_choice("backbone.pos_resize", str(pos_resize), POS_RESIZE)
        self.visual = _image_tower(model, name)
        self.pos_resize = pos_resize
        set_activation(self.visual.transformer.resblocks, activation)
        self.requires_grad_(False).eval()

        conv = self.visual.conv1
        self.patch_size: int = conv.kernel_size[0]
        self.width: int = conv.out_channels
        self.num_layers = len(self.visual.transformer.resblocks)
        self.embed_dim: int = self.visual.proj.shape[1]
        native = round((self.visual.positional_embedding.shape[0] - 1) ** 0.5) * self.patch_size
        self.image_size = self.checked_size(native if image_size is None else image_size)
        self.layers = self.checked_layers(layers or self.quarters)
        self._positions: dict[tuple[Any, ...], Tensor] = {}

    @property
    def has_stem(self) -> bool:
        """Whether the patch embedding is a network, whose output is worth keeping."""
        return isinstance(self.visual.conv1, HybridStem)

    def cache_key(self) -> dict[str, str]:
        """What cached tokens depend on besides the weights, the input size and the layers."""
        return {"activation": self.activation, "positions": self.pos_resize}

    # ---- image tower -------------------------------------------------------------------------------------------------

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1 + rows * columns, Dv] for a grid of patches, class position first."""
        table = self.visual.positional_embedding
        key = (grid, table.device, table.dtype)
        if key not in self._positions:
            self._positions[key] = resize_positions(table.detach(), grid, self.pos_resize)
        return self._positions[key]

    def embed_image(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch embedding, class token in front, plus positions, before `ln_pre`: [B, 1 + N, Dv] and the patch grid."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image of {height}x{width} pixels: sides must be multiples of the patch size {self.patch_size}"
            )
        return self.embed_map(self.visual.conv1(images))

    def embed_map(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`embed_image` from the patch embedding's own output [B, Dv, rows, columns]."""
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        cls = self.visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([cls, x], dim=1) + self.positions(grid).to(x.dtype), grid

    def encode_image(
        self,
        images: Tensor,
        *,
        layers: Sequence[int] = (),
        prompts: Prompts | None = None,
        vv_from: int | None = None,
        value_attention: ValueAttention | None = None,
        adapters: Sequence[nn.Module] = (),
        token_sets: Tensor | None = None,
    ) -> ImageTokens:
        """Runs the image tower.

        Args:
            images: [B, 3, H, W] normalised; H and W multiples of the patch size.
            layers: 1-based blocks whose tokens are returned.
            prompts: Tokens that enter on the way, appended behind the patches or overwriting (see `Prompts`).
            vv_from: 0-based first block of the V-V path (see `run_blocks`).
            value_attention: See `run_blocks`.
            adapters: See `run_blocks`.
            token_sets: [W, k] indices into the 1 + N tokens (0 is the class token). Each row makes a short sequence of its
                own of every image, cut before `ln_pre` with its original positions (WinCLIP's windows). All outputs
                then have the batch size B * W, windows of one image next to each other.

        Returns:
            ImageTokens
        """
        x, grid = self.embed_image(images)
        return self.encode_embedded(
            x,
            grid,
            layers=layers,
            prompts=prompts,
            vv_from=vv_from,
            value_attention=value_attention,
            adapters=adapters,
            token_sets=token_sets,
        )

    def encode_embedded(
        self,
        x: Tensor,
        grid: tuple[int, int],
        *,
        layers: Sequence[int] = (),
        prompts: Prompts | None = None,
        vv_from: int | None = None,
        value_attention: ValueAttention | None = None,
        adapters: Sequence[nn.Module] = (),
        token_sets: Tensor | None = None,
    ) -> ImageTokens:
        """`encode_image` from what `embed_image` returned: `x` [B, 1 + N, Dv] and the patch grid."""
        if token_sets is not None:
            x = x[:, token_sets].flatten(0, 1)  # [B, W, k, Dv] -> [B * W, k, Dv]
        read = None
        if not layers and vv_from is None and value_attention is None and not adapters:
            read = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)  # nothing but the class token is asked for
        out = run_blocks(
            self.visual.transformer.resblocks,
            self.visual.ln_pre(x),
            prompts=prompts,
            taps=layers,
            vv_from=vv_from,
            value_attention=value_attention,
            adapters=adapters,
            read=read,
        )
        strip = prompts.strip if prompts is not None else lambda tokens: tokens
        cls_token = out.last[:, 0]
        return ImageTokens(
            cls=self.project(cls_token),
            cls_token=cls_token,
            tokens=[strip(out.taps[layer]) for layer in layers],
            ordinary=[strip(out.ordinary[layer]) for layer in layers],
            grid=grid,
        )

    def encode_patches(self, images: Tensor, *, layers: Sequence[int], tap: Tap = "raw") -> ImagePatches:
        """Runs the ordinary path up to the last requested block, as the vision towers without texts do.

        Args:
            images: [B, 3, H, W] normalised; H and W multiples of the patch size.
            layers: 1-based blocks; 0 for the patch embedding's output before class token and positions, raw under any `tap`.
            tap: `raw` block outputs, `norm` (after `ln_post`), or `projected` (after `ln_post` and CLIP's projection).
        """
        embedded = self.visual.conv1(images)
        x, grid = self.embed_map(embedded)
        blocks = self.visual.transformer.resblocks
        taps = run_blocks(blocks, self.visual.ln_pre(x), taps=layers, until=max(layers, default=0)).taps
        finish = {"raw": lambda tokens: tokens, "norm": self.visual.ln_post, "projected": self.project}[tap]
        tokens = {layer: finish(taps[layer]) for layer in taps}
        if 0 in layers:
            patches = embedded.flatten(2).transpose(1, 2)
            tokens[0] = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        return ImagePatches([tokens[i][:, 1:] for i in layers], [tokens[i][:, 0] for i in layers], grid)

    def project(self, tokens: Tensor, *, ln_post: bool = True) -> Tensor:
        """Vision tokens [..., Dv] into the joint space [..., C] by CLIP's own projection, after `ln_post` or without it."""
        projected: Tensor = (self.visual.ln_post(tokens) if ln_post else tokens) @ self.visual.proj
        return projected


def _image_tower(model: Any, name: str) -> VisionTransformer:
    """The image tower of an open_clip model, after checking that its blocks can be driven one by one."""
    visual = model.visual
    if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool is not None:
        raise UserError(
            f"backbone '{name}': its image tower ({type(visual).__name__}) is no open_clip ViT with a class token, which the"
            " methods drive block by block: choose a ViT such as ViT-B-16 or ViT-L-14-336"
        )
    if not drivable(list(visual.transformer.resblocks)):
        raise UserError(f"backbone '{name}': its image tower is not CLIP's (plain residual attention blocks)")
    return visual
