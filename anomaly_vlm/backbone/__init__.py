"""Frozen open_clip towers, driven block by block. Usable on its own: no Lightning, Hydra or data set in here."""

from anomaly_vlm.backbone.blocks import BlockOutputs, Prompts, plus_next_attention, run_blocks
from anomaly_vlm.backbone.clip import ClipBackbone, ImageTokens
from anomaly_vlm.backbone.convnext import ConvNextBackbone, ImagePyramid
from anomaly_vlm.backbone.frozen import FrozenClip
from anomaly_vlm.backbone.position import resize_positions
from anomaly_vlm.backbone.weights import convert_torchscript, load_backbone, read_weights

__all__ = [
    "BlockOutputs",
    "ClipBackbone",
    "ConvNextBackbone",
    "FrozenClip",
    "ImagePyramid",
    "ImageTokens",
    "Prompts",
    "convert_torchscript",
    "load_backbone",
    "plus_next_attention",
    "read_weights",
    "resize_positions",
    "run_blocks",
]
