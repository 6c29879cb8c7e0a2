"""FineGrainedAD's published files: PromptAD's layout, and text features of entities and background, a query former."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_vlm.methods.base.published import Files, PublishedLayout
from anomaly_vlm.methods.finegrainedad.levels import GROUPS
from anomaly_vlm.methods.finegrainedad.method import FineGrainedAD
from anomaly_vlm.methods.promptad.published import CategoryFiles, no_key, read_categories, take_contexts

WEIGHTS = tuple(f"{kind}_{group}_w" for kind in ("normal", "abnormal") for group in GROUPS)  # published names, in order
FORMER = "q_former."  # its queries and key weights have no effect


def take_learner(method: FineGrainedAD, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Text features of entities, image and background, and, where a file has them, contexts and weights."""
    entities, image = content.pop("entity_features_list"), content.pop("text_features")
    background = content.pop("background_features")
    features = torch.cat([entities, image[None], background[None]]) if method.mlsa else image[None]
    contexts = take_contexts(content, ("normal_ctx", "abnormal_ctx", *WEIGHTS))
    weights = [contexts.pop(name) for name in WEIGHTS if name in contexts]
    if weights and method.mllp:
        contexts["weights"] = torch.cat(weights).view(2, len(GROUPS))
    return {"features": features, **contexts}


def shared(method: FineGrainedAD, files: Files) -> dict[str, Tensor]:
    """The query former of a file of a whole state, which belongs to no category."""
    whole = [content for content in files.values() if any(key.startswith(FORMER) for key in content)]
    if method.query_former is None or not whole:
        return {}
    weights = query_former(whole[0], method.backbone.embed_dim)
    return {f"query_former.{name}": tensor for name, tensor in weights.items()}


def query_former(state: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    """The published module's weights under `QueryFormer`'s names.

    They are the value half of each `kv_proj`, both `proj`, and the last layer.
    """
    weights = {}
    for kind in ("weight", "bias"):
        for i in (1, 2):
            weights[f"value{i}.{kind}"] = state[f"{FORMER}cross_attn{i}.kv_proj.{kind}"][dim:]
            weights[f"out{i}.{kind}"] = state[f"{FORMER}cross_attn{i}.proj.{kind}"]
        weights[f"fuse.{kind}"] = state[f"{FORMER}fuse_layer.{kind}"]
    return weights


FILES = CategoryFiles(take_learner, shared, ignored=(FORMER,))
LAYOUT = PublishedLayout(key=no_key, whole=lambda method, files: read_categories(method, files, FILES))
