"""The mask decoder: Mask2Former's pixel and transformer decoders on external features, and the classifier of its masks.

The decoders are the parts of `transformers` (5.x), imported here and nowhere else: they are no top-level API.
Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022; the classifier is FC-CLIP's
(Yu et al., NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = [
    "Decoded",
    "Mask2FormerConfig",
    "Mask2FormerLoss",
    "MaskClassifier",
    "MaskDecoder",
    "decoder_config",
    "sample_point",
]
GROUPS = 32  # of the GroupNorms: the hidden width must be a multiple


class Decoded(NamedTuple):
    """What the decoder says of a batch, at each of its stages (the initial queries, then every layer).

    masks: stages x [B, N, h, w] logits at stride 4. queries: stages x [B, N, D], layer-normed. pixels: [B, D, h, w] mask
    features; masks are their products with embedded queries. levels: [B, D, h_l, w_l] at strides 32, 16, 8.
    """

    masks: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    pixels: Tensor
    levels: tuple[Tensor, ...]


def decoder_config(
    *,
    queries: int = 250,
    hidden: int = 256,
    heads: int = 8,
    pixel_layers: int = 6,
    pixel_ffn: int = 1024,
    decoder_layers: int = 9,
    decoder_ffn: int = 2048,
    points: int = 12544,
) -> Mask2FormerConfig:
    """The sizes of the decoder under this suite's names.

    Raises:
        UserError: a size that the decoder cannot have.
    """
    sizes = {"queries": queries, "pixel_layers": pixel_layers, "decoder_layers": decoder_layers, "points": points}
    for name, value in {**sizes, "pixel_ffn": pixel_ffn, "decoder_ffn": decoder_ffn, "heads": heads}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is {value!r}: give a whole number of at least 1")
    if hidden % GROUPS or hidden % heads or hidden < GROUPS:
        raise UserError(f"hidden is {hidden}: give a multiple of {GROUPS} that the {heads} heads divide, such as 256")
    return Mask2FormerConfig(
        feature_size=hidden,
        mask_feature_size=hidden,
        hidden_dim=hidden,
        num_attention_heads=heads,
        encoder_layers=pixel_layers,
        encoder_feedforward_dim=pixel_ffn,
        decoder_layers=decoder_layers + 1,  # counts the initial prediction
        dim_feedforward=decoder_ffn,
        num_queries=queries,
        train_num_points=points,
        dropout=0.0,  # would be layer drop, too
    )


class MaskDecoder(Mask2FormerPreTrainedModel):
    """Pixel decoder and transformer decoder on four feature maps.

    Args:
        config: see `decoder_config`. widths: channels at strides 4, 8, 16, 32.
        seed: of the initial weights.
    """

    def __init__(self, config: Mask2FormerConfig, widths: Sequence[int], *, seed: int = 0) -> None:
        super().__init__(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pixel_decoder = Mask2FormerPixelDecoder(config, list(widths))
            self.transformer = Mask2FormerTransformerModule(in_features=config.hidden_dim, config=config)
            self.post_init()  # fills what the parts leave uninitialised

    def forward(self, maps: Sequence[Tensor]) -> Decoded:
        """[B, C_l, H / stride, W / stride] at strides 4, 8, 16, 32 -> `Decoded`.

        Deformable attention keeps float32 under autocast, as in FC-CLIP.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            dtype = self.transformer.level_embed.weight.dtype
            pyramid = self.pixel_decoder([part.to(dtype) for part in maps])
        pixels, levels = pyramid.mask_features, pyramid.multi_scale_features
        out = self.transformer(levels, pixels)
        queries = tuple(state.transpose(0, 1) for state in out.intermediate_hidden_states)  # query first -> batch first
        return Decoded(tuple(out.masks_queries_logits), queries, pixels, tuple(levels))


class MaskClassifier(nn.Module):
    """Embeds every query's mask into CLIP's joint space and compares it with class vectors and a learned void vector.

    Args:
        hidden: width of queries and of mask features.
        embed_dim: of the joint space.
        seed: of the initial weights.

    Reference: FC-CLIP's published code, in-vocabulary classifier.
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
        """Unit vectors [B, N, C] of the masks [B, N, h, w]."""
        pooled = self.pooling(pool(masks, pixels))
        x = pooled + queries
        for i, layer in enumerate(self.embed):
            x = layer(x) if i == len(self.embed) - 1 else F.relu(layer(x))
        return F.normalize(x, dim=-1)

    def forward(self, masks: Tensor, queries: Tensor, pixels: Tensor, concepts: Tensor) -> Tensor:
        """Scaled similarities [B, N, M + 1] with M concept vectors [M, C] of unit norm; the void vector's come last."""
        vectors = torch.cat([concepts, F.normalize(self.void, dim=-1)])
        return self.scale * self.embeddings(masks, queries, pixels) @ vectors.T


def pool(masks: Tensor, pixels: Tensor) -> Tensor:
    """Mean of `pixels` [B, D, h, w] within each mask, logits [B, N, h, w] > 0 (no gradient through it): [B, N, D].

    An empty mask gives the zero vector.
    """
    binary = (masks.detach() > 0).to(pixels.dtype)
    total = torch.einsum("bnhw,bdhw->bnd", binary, pixels)
    return total / (binary.sum(dim=(-1, -2)) + 1e-8)[..., None]
