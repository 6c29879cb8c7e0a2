"""Architecture of the nano ConvNeXt CLIP (`nano_convnext`) and its first weights."""

from __future__ import annotations

import math
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from anomaly_vlm.backbone import ConvNextBackbone
from anomaly_vlm.nano.model import TEMPERATURE

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": False,
    "vision_cfg": {
        "timm_model_name": "test_convnext2", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "mlp",
        "timm_drop": 0.0, "timm_drop_path": 0.0, "image_size": 96,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}  # fmt: skip


def new_convnext(seed: int) -> open_clip.CLIP:
    """The model as training starts it. ConvNeXt's layer scale starts at 1 (timm: 1e-6, which takes days to grow)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**ARCHITECTURE)
        visual: Any = model.visual
        for stage in visual.trunk.stages:
            for block in stage.blocks:
                block.gamma.data.fill_(1.0)
                nn.init.kaiming_normal_(block.conv_dw.weight, nonlinearity="linear")
        nn.init.normal_(model.token_embedding.weight, std=0.3)
        model.logit_scale.data.fill_(math.log(1 / TEMPERATURE))
    return model


def as_convnext(model: nn.Module, weights: str = "in training") -> ConvNextBackbone:
    """The suite's view of the model (frozen by it; training thaws what it trains)."""
    return ConvNextBackbone(
        model, name="nano_convnext", weights=weights, tokenizer=SimpleTokenizer(), activation="gelu", image_size=96
    )
