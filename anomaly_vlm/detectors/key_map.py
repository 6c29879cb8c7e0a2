"""The original Grounding DINO code's checkpoints in the transformers port: sizes read from the tensors, keys renamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from anomaly_vlm.backbone.weight_files import mismatches, read_weights
from anomaly_vlm.errors import UserError

SWIN = r"model.backbone.conv_encoder.model.swin"
LAYER = r"swin.encoder.layers.\1.blocks.\2"
# Original pattern -> name in transformers 5. Applied in order, the first match counts.
RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.0\.patch_embed\.proj\.", f"{SWIN}.embeddings.patch_embeddings.projection."),
    (r"backbone\.0\.patch_embed\.norm\.", f"{SWIN}.embeddings.norm."),
    (
        r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.norm1\.",
        rf"model.backbone.conv_encoder.model.{LAYER}.layernorm_before.",
    ),
    (
        r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.norm2\.",
        rf"model.backbone.conv_encoder.model.{LAYER}.layernorm_after.",
    ),
    (r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.", rf"model.backbone.conv_encoder.model.{LAYER}.mlp."),
    (
        r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.",
        rf"model.backbone.conv_encoder.model.{LAYER}.attention.o_proj.",
    ),
    (
        r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
        rf"model.backbone.conv_encoder.model.{LAYER}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (
        r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.attn\.([qkv])\.",
        rf"model.backbone.conv_encoder.model.{LAYER}.attention.\3_proj.",
    ),
    (r"backbone\.0\.layers\.(\d+)\.downsample\.", rf"{SWIN}.encoder.layers.\1.downsample."),
    (r"backbone\.0\.norm(\d)\.", r"model.backbone.conv_encoder.model.hidden_states_norms.stage{next}."),
    (r"input_proj\.", "model.input_proj_vision."),
    (r"feat_map\.", "model.text_projection."),
    (r"bert\.", "model.text_backbone."),
    (r"bbox_embed\.", "bbox_embed."),
    (r"transformer\.level_embed", "model.level_embed"),
    (r"transformer\.tgt_embed\.", "model.query_position_embeddings."),
    (r"transformer\.enc_output\.", "model.enc_output."),
    (r"transformer\.enc_output_norm\.", "model.enc_output_norm."),
    (r"transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (r"transformer\.encoder\.layers\.(\d+)\.self_attn\.", r"model.encoder.layers.\1.deformable_layer.self_attn."),
    (
        r"transformer\.encoder\.layers\.(\d+)\.norm1\.",
        r"model.encoder.layers.\1.deformable_layer.self_attn_layer_norm.",
    ),
    (r"transformer\.encoder\.layers\.(\d+)\.linear(\d)\.", r"model.encoder.layers.\1.deformable_layer.fc\2."),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.", r"model.encoder.layers.\1.deformable_layer.final_layer_norm."),
    (
        r"transformer\.encoder\.text_layers\.(\d+)\.self_attn\.",
        r"model.encoder.layers.\1.text_enhancer_layer.self_attn.",
    ),
    (r"transformer\.encoder\.text_layers\.(\d+)\.linear(\d)\.", r"model.encoder.layers.\1.text_enhancer_layer.fc\2."),
    (
        r"transformer\.encoder\.text_layers\.(\d+)\.norm1\.",
        r"model.encoder.layers.\1.text_enhancer_layer.layer_norm_before.",
    ),
    (
        r"transformer\.encoder\.text_layers\.(\d+)\.norm2\.",
        r"model.encoder.layers.\1.text_enhancer_layer.layer_norm_after.",
    ),
    (r"transformer\.encoder\.fusion_layers\.(\d+)\.gamma_v", r"model.encoder.layers.\1.fusion_layer.vision_param"),
    (r"transformer\.encoder\.fusion_layers\.(\d+)\.gamma_l", r"model.encoder.layers.\1.fusion_layer.text_param"),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.layer_norm_v\.",
        r"model.encoder.layers.\1.fusion_layer.layer_norm_vision.",
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.layer_norm_l\.",
        r"model.encoder.layers.\1.fusion_layer.layer_norm_text.",
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.attn\.v_proj\.",
        r"model.encoder.layers.\1.fusion_layer.attn.vision_proj.",
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.attn\.l_proj\.",
        r"model.encoder.layers.\1.fusion_layer.attn.text_proj.",
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.attn\.(values|out)_v_proj\.",
        r"model.encoder.layers.\1.fusion_layer.attn.\2_vision_proj.",
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.attn\.(values|out)_l_proj\.",
        r"model.encoder.layers.\1.fusion_layer.attn.\2_text_proj.",
    ),
    (r"transformer\.decoder\.layers\.(\d+)\.cross_attn\.", r"model.decoder.layers.\1.encoder_attn."),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.", r"model.decoder.layers.\1.encoder_attn_layer_norm."),
    (r"transformer\.decoder\.layers\.(\d+)\.ca_text\.", r"model.decoder.layers.\1.encoder_attn_text."),
    (r"transformer\.decoder\.layers\.(\d+)\.catext_norm\.", r"model.decoder.layers.\1.encoder_attn_text_layer_norm."),
    (r"transformer\.decoder\.layers\.(\d+)\.self_attn\.", r"model.decoder.layers.\1.self_attn."),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.", r"model.decoder.layers.\1.self_attn_layer_norm."),
    (r"transformer\.decoder\.layers\.(\d+)\.linear(\d)\.", r"model.decoder.layers.\1.fc\2."),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.", r"model.decoder.layers.\1.final_layer_norm."),
    (r"transformer\.decoder\.norm\.", "model.decoder.layer_norm."),
    (r"transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
    (r"transformer\.decoder\.bbox_embed\.", "model.decoder.bbox_embed."),
)
# transformers 4 and early 5 name the Swin part otherwise.
OLDER_SWIN: tuple[tuple[str, str], ...] = (
    (r"\.swin\.", "."),
    (r"\.attention\.([qkv])_proj\.", r".attention.self.\1."),
    (r"\.attention\.self\.q\.", ".attention.self.query."),
    (r"\.attention\.self\.k\.", ".attention.self.key."),
    (r"\.attention\.self\.v\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
UNUSED = re.compile(
    r"relative_position_index|position_ids$|pooler|^label_enc|class_embed|conv_encoder\.model\.(swin\.)?layernorm\."
)


def read_original(path: Path) -> dict[str, Tensor]:
    """The state dict of an original file as float32: FiLo's lie flat, others under `model`, some with the prefix `module.`.

    Raises:
        UserError: No such file, or one of another layout.
    """
    state = read_weights(path)
    if "transformer.level_embed" not in state:
        raise UserError(
            f"detector weights '{path}' have no key 'transformer.level_embed': give an original Grounding DINO file"
        )
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors say of the architecture."""

    def count(pattern: str) -> int:
        return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1)

    stages = count(r"backbone\.0\.layers\.(\d+)\.")
    tables = [state[f"backbone.0.layers.{i}.blocks.0.attn.relative_position_bias_table"].shape for i in range(stages)]
    levels = state["transformer.level_embed"].shape[0]
    words = state["bert.embeddings.word_embeddings.weight"].shape
    heads = state["transformer.encoder.layers.0.self_attn.attention_weights.weight"].shape[0] // (4 * levels)
    return {
        "swin": {
            "embed_dim": state["backbone.0.patch_embed.proj.weight"].shape[0],
            "depths": [count(rf"backbone\.0\.layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)],
            "num_heads": [table[1] for table in tables],
            "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        },
        "text": {
            "vocab_size": words[0],
            "hidden_size": words[1],
            "num_hidden_layers": count(r"bert\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, words[1] // 64),
            "intermediate_size": state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "max_position_embeddings": state["bert.embeddings.position_embeddings.weight"].shape[0],
        },
        "d_model": state["feat_map.weight"].shape[0],
        "encoder_layers": count(r"transformer\.encoder\.layers\.(\d+)\."),
        "decoder_layers": count(r"transformer\.decoder\.layers\.(\d+)\."),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": state["transformer.encoder.layers.0.linear1.weight"].shape[0],
        "decoder_ffn_dim": state["transformer.decoder.layers.0.linear1.weight"].shape[0],
        "num_queries": state["transformer.tgt_embed.weight"].shape[0],
        "num_feature_levels": levels,
    }


def converted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """An original state dict under the transformers port's keys.

    Args:
        state: State dict of an original file.
        expected: State dict of the built model, whose keys decide.
        source: Name of the file, for the message.

    Raises:
        UserError: Keys that the model has not, or lacks, or of another shape.
    """
    new: dict[str, Tensor] = {}
    for key, value in _split(state).items():
        if not UNUSED.search(key):
            new[_renamed(key)] = value
    if not any(".swin." in key for key in expected):
        new = {_older(key): value for key, value in new.items()}
    needed = {key: value for key, value in expected.items() if key in new or not UNUSED.search(key)}
    wrong = mismatches(needed, new)
    if wrong:
        raise UserError(
            f"detector weights '{source}' do not fit Grounding DINO in the installed transformers: {wrong}: give an"
            " original Grounding DINO file"
        )
    return new


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joint projections (rows thirds) as query, key and value."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if found := re.fullmatch(r"(.*\.attn)\.qkv\.(weight|bias)", key):
            out.update({f"{found[1]}.{n}.{found[2]}": part for n, part in zip("qkv", value.chunk(3), strict=True)})
        elif found := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", key):
            names = ("query", "key", "value")
            out.update({f"{found[1]}.{n}.{found[2]}": part for n, part in zip(names, value.chunk(3), strict=True)})
        else:
            out[key] = value
    return out


def _renamed(key: str) -> str:
    for pattern, name in RULES:
        if found := re.match(pattern, key):
            if "{next}" in name:
                name = name.format(next=int(found[1]) + 1)
            return found.expand(name) + key[found.end() :]
    return key


def _older(key: str) -> str:
    if "conv_encoder" in key:
        for pattern, name in OLDER_SWIN:
            key = re.sub(pattern, name, key, count=1)
    return key
