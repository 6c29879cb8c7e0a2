"""Grounding DINO with random weights, small enough for a test, and a tokenizer whose special ids are BERT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WORDS = ["scratch", "crack", "dent", "on", "the", "hole", "stain", "rust", "burn", "metal", "broken", "edge"]
SIZE = 1200  # of the vocabulary


def write_tokenizer(folder: Path) -> Path:
    """BERT's tokenizer with few words: [CLS] 101, [SEP] 102, `.` 1012, `?` 1029, as the models expect."""
    from transformers import BertTokenizer

    ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    letters = "abcdefghijklmnopqrstuvwxyz"
    for word in [*WORDS, *letters, *(f"##{letter}" for letter in letters), "##es"]:
        ids[word] = next(i for i in range(200, SIZE) if i not in ids.values())
    for i in range(SIZE):
        if i not in ids.values():
            ids[f"[unused{i}]"] = i
    BertTokenizer(vocab=dict(sorted(ids.items(), key=lambda item: item[1]))).save_pretrained(folder)
    return folder


def write_model(folder: Path) -> Path:
    """A folder in transformers' layout: model, tokenizer."""
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    swin: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    text = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 64,
    }
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**swin, out_features=["stage2", "stage3", "stage4"]),
        text_config=BertConfig(**text),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=10,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return write_tokenizer(folder)


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


SAM_SIDE = 64  # of SAM's input


def write_sam(folder: Path) -> Path:
    """A folder in transformers' layout: SAM of a quarter of a million parameters, random."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "image_size": SAM_SIDE,
            "patch_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_dim": 64,
            "output_channels": 32,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SAM_SIDE, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SamModel(config).save_pretrained(folder)
    return folder
