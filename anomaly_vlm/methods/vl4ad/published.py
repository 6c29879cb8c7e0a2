"""FC-CLIP's checkpoints (detectron2, entry `model`), from which a decoder may start; VL4AD has published none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomaly_vlm.methods.base.published import PublishedLayout

if TYPE_CHECKING:
    from anomaly_vlm.methods.vl4ad.method import VL4AD

HEAD, PIXEL = "sem_seg_head.predictor", "sem_seg_head.pixel_decoder"
SELF, CROSS, FFN = (f"{HEAD}.transformer_{part}_layers" for part in ("self_attention", "cross_attention", "ffn"))
ENCODER = f"{PIXEL}.transformer.encoder.layers"
P, T = r"decoder\.pixel_decoder\.", r"decoder\.transformer\."
E, L = P + r"encoder\.layers\.", T + r"decoder\.layers\."
# (pattern of the name here, FC-CLIP's name); the first that fits counts
NAMES = (
    (r"classifier\.void", "void_embedding.weight"),
    (r"classifier\.logit_scale", f"{HEAD}.logit_scale"),
    (r"classifier\.pooling\.(\d)\.(\w+)", rf"{HEAD}._mask_pooling_proj.\1.\2"),
    (r"classifier\.embed\.(\d)\.(\w+)", rf"{HEAD}.class_embed.layers.\1.\2"),
    (P + r"input_projections\.(.+)", rf"{PIXEL}.input_proj.\1"),
    (P + r"level_embed", f"{PIXEL}.transformer.level_embed"),
    (P + r"mask_projection\.(\w+)", rf"{PIXEL}.mask_features.\1"),
    (P + r"(adapter|layer)_1\.0\.weight", rf"{PIXEL}.\1_1.weight"),
    (P + r"(adapter|layer)_1\.1\.(\w+)", rf"{PIXEL}.\1_1.norm.\2"),
    (E + r"(\d+)\.self_attn_layer_norm\.(\w+)", rf"{ENCODER}.\1.norm1.\2"),
    (E + r"(\d+)\.final_layer_norm\.(\w+)", rf"{ENCODER}.\1.norm2.\2"),
    (E + r"(\d+)\.fc(\d)\.(\w+)", rf"{ENCODER}.\1.linear\2.\3"),
    (E + r"(\d+)\.self_attn\.(.+)", rf"{ENCODER}.\1.self_attn.\2"),
    (T + r"queries_features\.weight", f"{HEAD}.query_feat.weight"),
    (T + r"queries_embedder\.weight", f"{HEAD}.query_embed.weight"),
    (T + r"level_embed\.weight", f"{HEAD}.level_embed.weight"),
    (T + r"decoder\.layernorm\.(\w+)", rf"{HEAD}.decoder_norm.\1"),
    (T + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(\w+)", rf"{HEAD}.mask_embed.layers.\1.\2"),
    (L + r"(\d+)\.self_attn_layer_norm\.(\w+)", rf"{SELF}.\1.norm.\2"),
    (L + r"(\d+)\.self_attn\.(.+)", rf"{SELF}.\1.self_attn.\2"),
    (L + r"(\d+)\.cross_attn_layer_norm\.(\w+)", rf"{CROSS}.\1.norm.\2"),
    (L + r"(\d+)\.cross_attn\.(.+)", rf"{CROSS}.\1.multihead_attn.\2"),
    (L + r"(\d+)\.final_layer_norm\.(\w+)", rf"{FFN}.\1.norm.\2"),
    (L + r"(\d+)\.fc(\d)\.(\w+)", rf"{FFN}.\1.linear\2.\3"),
)  # fmt: skip
IGNORED = ("backbone.", "criterion.empty_weight")


def key(method: VL4AD, name: str) -> str:
    """The key of the learnable parameter `name`; a text that names it where FC-CLIP has none."""
    for pattern, published in NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(published) if "\\" in published else published
    return f"(nothing in FC-CLIP is {name})"


def ignored(method: VL4AD, key: str) -> bool:
    """Whether a key belongs to the frozen trunk or to the training alone."""
    return key.startswith(IGNORED)


def unwrap(method: VL4AD, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, with the fused projections of the queries' self-attention split in three."""
    model = content.get("model", content)
    state: dict[str, Tensor] = {}
    for key, value in model.items():
        tensor = torch.as_tensor(value)
        if found := re.fullmatch(rf"({re.escape(SELF)}\.\d+\.self_attn)\.in_proj_(weight|bias)", key):
            for projection, letter in zip(torch.chunk(tensor, 3), "qkv", strict=True):
                state[f"{found[1]}.{letter}_proj.{found[2]}"] = projection
        else:
            state[key] = tensor
    return state


LAYOUT = PublishedLayout(key=key, unwrap=unwrap, ignored=ignored)
