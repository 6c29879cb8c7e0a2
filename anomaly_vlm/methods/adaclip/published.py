"""The published checkpoints of AdaCLIP: one state dict of the whole model."""

from __future__ import annotations

from anomaly_vlm.methods.adaclip.method import AdaCLIP
from anomaly_vlm.methods.base.published import PublishedLayout

PREFIXES = {  # start of a parameter's name here -> start of its key in the published file
    "text_prompts.static.": "text_prompter.static_prompts.",
    "image_prompts.static.": "visual_prompter.static_prompts.",
    "text_prompts.dynamic.": "dynamic_text_prompt_generator.head.",
    "image_prompts.dynamic.": "dynamic_visual_prompt_generator.head.",
    "patch_projection.": "patch_token_layer.head.",
    "cls_projection.": "cls_token_layer.head.0.",
}


def key(method: AdaCLIP, name: str) -> str:
    """The published key of a learnable parameter."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return "clip_model." + PREFIXES[prefix] + name.removeprefix(prefix)


def ignored(method: AdaCLIP, key: str) -> bool:
    """Whether a key is of the dynamic prompts of a tower without prompts, which the published code stores all the same."""
    prompts = {
        "dynamic_text_prompt_generator": method.text_prompts,
        "dynamic_visual_prompt_generator": method.image_prompts,
    }
    return any(key.startswith(f"clip_model.{name}.") and tokens is None for name, tokens in prompts.items())


LAYOUT = PublishedLayout(key=key, ignored=ignored)
