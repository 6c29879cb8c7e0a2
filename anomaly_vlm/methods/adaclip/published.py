"""AdaCLIP's published checkpoints: one state dict of the whole model."""

from __future__ import annotations

from anomaly_vlm.methods.adaclip.method import AdaCLIP
from anomaly_vlm.methods.base.published import PublishedLayout

KEYS = {  # beginning of a name here -> of its key in the published file
    "text_prompts.static.": "text_prompter.static_prompts.",
    "image_prompts.static.": "visual_prompter.static_prompts.",
    "text_prompts.dynamic.": "dynamic_text_prompt_generator.head.",
    "image_prompts.dynamic.": "dynamic_visual_prompt_generator.head.",
    "patch_projection.": "patch_token_layer.head.",
    "cls_projection.": "cls_token_layer.head.0.",
}


def key(method: AdaCLIP, name: str) -> str:
    """The published key of a learnable parameter."""
    start = next(own for own in KEYS if name.startswith(own))
    return "clip_model." + KEYS[start] + name.removeprefix(start)


def ignored(method: AdaCLIP, key: str) -> bool:
    """Type D keeps the generator of a branch without prompts, unused."""
    unused = {
        "dynamic_text_prompt_generator": method.text_prompts,
        "dynamic_visual_prompt_generator": method.image_prompts,
    }
    return any(key.startswith(f"clip_model.{name}.") and prompts is None for name, prompts in unused.items())


LAYOUT = PublishedLayout(key=key, ignored=ignored)
