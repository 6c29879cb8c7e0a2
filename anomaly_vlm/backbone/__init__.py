"""Frozen open_clip towers, driven block by block, and image trunks. Usable alone: no Lightning, Hydra or data set here."""

from anomaly_vlm.backbone.blocks import BlockOutputs, Prompts, ValueAttention, plus_next_attention, run_blocks
from anomaly_vlm.backbone.clip import ClipBackbone, ImageTokens
from anomaly_vlm.backbone.convnext import ConvNextBackbone, ImagePyramid
from anomaly_vlm.backbone.frozen import FrozenClip, FrozenTower
from anomaly_vlm.backbone.positions import resize_positions
from anomaly_vlm.backbone.stem import HybridStem, put_stem
from anomaly_vlm.backbone.taps import ImagePatches, Tap
from anomaly_vlm.backbone.trunk import TrunkBackbone, load_trunk
from anomaly_vlm.backbone.vit import ViTBackbone, load_vit
from anomaly_vlm.backbone.weight_files import convert_torchscript, read_weights
from anomaly_vlm.backbone.weights import load_backbone

__all__ = [
    "BlockOutputs",
    "ClipBackbone",
    "ConvNextBackbone",
    "FrozenClip",
    "FrozenTower",
    "HybridStem",
    "ImagePatches",
    "ImagePyramid",
    "ImageTokens",
    "Prompts",
    "Tap",
    "TrunkBackbone",
    "ValueAttention",
    "ViTBackbone",
    "convert_torchscript",
    "load_backbone",
    "load_trunk",
    "load_vit",
    "plus_next_attention",
    "put_stem",
    "read_weights",
    "resize_positions",
    "run_blocks",
]
