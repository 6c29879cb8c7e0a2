"""The one tiny CLIP of the tests: random weights, milliseconds; a test that needs another size says which."""

from __future__ import annotations

from typing import Any

from anomaly_vlm.backbone import ClipBackbone, load_backbone


def tiny_architecture(
    *,
    image_size: int = 32,
    patch_size: int = 8,
    layers: int = 4,
    width: int = 32,
    head_width: int = 16,
    text_layers: int = 2,
    text_width: int = 16,
    text_heads: int = 2,
    context_length: int = 77,
    embed_dim: int = 16,
    quick_gelu: bool = False,
) -> dict[str, Any]:
    """open_clip's description of a CLIP of 32 px with 4 x 4 patches, changed where a test says so."""
    vision = {"image_size": image_size, "layers": layers, "width": width, "head_width": head_width}
    text = {"context_length": context_length, "vocab_size": 49408, "width": text_width, "heads": text_heads}
    return {
        "embed_dim": embed_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {**vision, "patch_size": patch_size},
        "text_cfg": {**text, "layers": text_layers},
    }


def tiny_clip(**sizes: Any) -> ClipBackbone:
    """The tiny CLIP with random weights of seed 0; see `tiny_architecture` for its sizes."""
    return load_backbone("tiny", architecture=tiny_architecture(**sizes), random_seed=0)
