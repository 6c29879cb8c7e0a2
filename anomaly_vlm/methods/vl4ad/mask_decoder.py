"""The mask decoder: Mask2Former's pixel and transformer decoders on external features, and the classifier of its masks.

The decoders come from `transformers` (5.x). They are no top-level API there, so this file alone imports them. Cheng et al.,
"Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022; the classifier is FC-CLIP's (Yu et al.,
NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
    sample_point,
)

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.shared.precision import in_float32, product
from anomaly_vlm.options import PositiveInt

__all__ = [
    "Decoded",
    "DecoderOptions",
    "Mask2FormerConfig",
    "Mask2FormerLoss",
    "MaskClassifier",
    "MaskDecoder",
    "sample_point",
]
GROUPS = 32  # of the GroupNorms: the hidden width must be a multiple


class Decoded(NamedTuple):
    """Outputs of the decoder for a batch, at each of its stages: the initial queries, then every layer.

    Attributes:
        masks: For each stage mask logits `[B, N, h, w]` at stride 4.
        queries: For each stage the queries `[B, N, D]`, layer-normed.
        pixels: Mask features `[B, D, h, w]`; masks are their products with embedded queries.
        levels: Features `[B, D, h_l, w_l]` at strides 32, 16 and 8.
    """

    masks: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    pixels: Tensor
    levels: tuple[Tensor, ...]


@dataclass(frozen=True)
class DecoderOptions:
    """Sizes of the decoder. The defaults are FC-CLIP's.

    Args:
        queries: Number N of masks.
        hidden: Width D of queries and mask features, a multiple of 32 that the heads divide.
        heads: Attention heads.
        pixel_layers: Layers of the pixel decoder.
        pixel_ffn: Hidden width of its feed-forward parts.
        decoder_layers: Layers of the transformer decoder.
        decoder_ffn: Hidden width of its feed-forward parts.
        points: Random points at which masks are compared with segments in training.

    Raises:
        UserError: `hidden` does not fit.
    """

    queries: PositiveInt = 250
    hidden: PositiveInt = 256
    heads: PositiveInt = 8
    pixel_layers: PositiveInt = 6
    pixel_ffn: PositiveInt = 1024
    decoder_layers: PositiveInt = 9
    decoder_ffn: PositiveInt = 2048
    points: PositiveInt = 12544

    def __post_init__(self) -> None:
        if self.hidden % GROUPS or self.hidden % self.heads:
            raise UserError(
                f"method.decoder.hidden is {self.hidden}: give a multiple of {GROUPS} that the {self.heads} heads divide,"
                " such as 256"
            )

    def config(self) -> Mask2FormerConfig:
        """The sizes under the names of `transformers`."""
        return Mask2FormerConfig(
            feature_size=self.hidden,
            mask_feature_size=self.hidden,
            hidden_dim=self.hidden,
            num_attention_heads=self.heads,
            encoder_layers=self.pixel_layers,
            encoder_feedforward_dim=self.pixel_ffn,
            decoder_layers=self.decoder_layers + 1,  # counts the initial prediction
            dim_feedforward=self.decoder_ffn,
            num_queries=self.queries,
            train_num_points=self.points,
            dropout=0.0,  # would drop whole layers, too
        )


class MaskDecoder(Mask2FormerPreTrainedModel):
    """Pixel decoder and transformer decoder on four feature maps.

    Args:
        options: Sizes.
        widths: Channels of the maps at strides 4, 8, 16 and 32.
        seed: Of the initial weights.
    """

    def __init__(self, options: DecoderOptions, widths: Sequence[int], *, seed: int = 0) -> None:
        config = options.config()
        super().__init__(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pixel_decoder = Mask2FormerPixelDecoder(config, list(widths))
            self.transformer = Mask2FormerTransformerModule(in_features=config.hidden_dim, config=config)
            self.post_init()  # type: ignore[no-untyped-call]  # fills what the parts leave uninitialised

    def forward(self, maps: Sequence[Tensor]) -> Decoded:
        """Decodes feature maps `[B, C_l, H / stride, W / stride]` at strides 4, 8, 16 and 32.

        Deformable attention keeps float32 under autocast, as in FC-CLIP.
        """
        with in_float32(maps[0]):
            dtype = self.transformer.level_embed.weight.dtype
            pyramid = self.pixel_decoder([features.to(dtype) for features in maps])
        pixels, levels = pyramid.mask_features, pyramid.multi_scale_features
        out = self.transformer(levels, pixels)
        queries = tuple(state.transpose(0, 1) for state in out.intermediate_hidden_states)  # query first -> batch first
        return Decoded(tuple(out.masks_queries_logits), queries, pixels, tuple(levels))


class MaskClassifier(nn.Module):
    """Embeds every query's mask into CLIP's joint space and compares it with class vectors and a learned void vector.

    This is the in-vocabulary classifier of FC-CLIP's published code.

    Args:
        hidden: Width D of queries and of mask features.
        embed_dim: Width C of the joint space.
        seed: Of the initial weights.
    """

    def __init__(self, hidden: int, embed_dim: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pooling = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden))
            self.embed = nn.ModuleList([nn.Linear(hidden, n) for n in (hidden, hidden, embed_dim)])
            self.void = nn.Parameter(torch.randn(1, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def scale(self) -> Tensor:
        """1 / T: the learned factor of the cosine similarities, at most 100."""
        return self.logit_scale.exp().clamp_max(100)

    def embeddings(self, masks: Tensor, queries: Tensor, pixels: Tensor) -> Tensor:
        """Unit vectors of masks in the joint space.

        Args:
            masks: Mask logits `[B, N, h, w]`.
            queries: `[B, N, D]`.
            pixels: Mask features `[B, D, h, w]`.

        Returns:
            `[B, N, C]`.
        """
        pooled = self.pooling(pool(masks, pixels))
        x = pooled + queries
        for i, layer in enumerate(self.embed):
            x = layer(x) if i == len(self.embed) - 1 else F.relu(layer(x))
        return F.normalize(x, dim=-1)

    def forward(self, masks: Tensor, queries: Tensor, pixels: Tensor, concepts: Tensor) -> Tensor:
        """Scaled similarities of masks with concepts and with void.

        Args:
            masks: Mask logits `[B, N, h, w]`.
            queries: `[B, N, D]`.
            pixels: Mask features `[B, D, h, w]`.
            concepts: Vectors `[M, C]` of unit norm.

        Returns:
            `[B, N, M + 1]`, void last.
        """
        vectors = torch.cat([concepts, F.normalize(self.void, dim=-1)])
        return product(self.scale * self.embeddings(masks, queries, pixels), vectors.T)


def pool(masks: Tensor, pixels: Tensor) -> Tensor:
    """Means of features within masks, without gradient through the masks.

    Args:
        masks: Mask logits `[B, N, h, w]`; a mask is where they are above 0.
        pixels: Features `[B, D, h, w]`.

    Returns:
        `[B, N, D]`; zeros for an empty mask.
    """
    binary = (masks.detach() > 0).to(pixels.dtype)
    total = torch.einsum("bnhw,bdhw->bnd", binary, pixels)
    return total / (binary.sum(dim=(-1, -2)) + 1e-8)[..., None]
