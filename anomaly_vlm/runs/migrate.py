"""Configurations of older checkpoints under today's names.

A checkpoint carries the configuration of its run. Where an option has been renamed since, or one of its values, the tables
here say how; nothing else accepts the old names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TEXTS: dict[str, str | None] = {"texts.table": "texts", "texts._target_": None}  # a table is given by its name
FEW_SHOT_PROMPTS: dict[str, str | None] = {
    "official_category": "published_category",
    "n_ctx": "contexts.length",
    "n_ctx_abnormal": "contexts.abnormal_length",
    "n_pro": "contexts.count",
    "n_pro_abnormal": "contexts.abnormal_count",
    "memory_layers": "memory.layers",
    "memory_tap": "memory.tap",
    "coreset": "memory.coreset",
    "memory_mb": "memory.memory_mb",
}
FEW_SHOT_VALUES: dict[str, dict[Any, Any]] = {
    "contexts.count": {None: {"seg": 1, "cls": 3}},
    "memory.layers": {None: "published"},
    "memory.tap": {"code": "published", "block": "paper"},
    "temperature": {"raw_logit_scale": "published"},
}
# method name -> {old dotted key below `method` -> new one}; None where the option is gone
METHOD_KEYS: dict[str, dict[str, str | None]] = {
    "april_gan": TEXTS,
    "winclip": TEXTS,
    "promptad": {**TEXTS, **FEW_SHOT_PROMPTS},
    "finegrainedad": {
        **FEW_SHOT_PROMPTS,
        "captions.table": "captions",
        "captions._target_": None,
        "prompts.table": "prompts",
        "prompts._target_": None,
    },
    "anovl": {
        **TEXTS,
        "adapt_steps": "adaptation.steps",
        "adapt_lr": "adaptation.lr",
        "noise_std": "adaptation.noise_std",
        "optimizer_state": "adaptation.optimizer_state",
    },
    "saa": {
        **TEXTS,
        "object_word": "prompts.object_word",
        "naive_caption": "prompts.naive_caption",
        "generic": "prompts.generic",
        "box_threshold": "boxes.box_threshold",
        "text_threshold": "boxes.text_threshold",
        "saliency_size": "saliency.size",
        "objects_size": "saliency.objects_size",
        "farthest": "saliency.farthest",
        "weight": "saliency.weight",
        "memory_mb": "saliency.memory_mb",
    },
    "vl4ad": {
        "concepts.table": "concepts",
        "concepts._target_": None,
        "ensemble": "clip_classifier.ensemble",
        "alpha": "clip_classifier.alpha",
        "beta": "clip_classifier.beta",
        "queries": "decoder.queries",
        "hidden": "decoder.hidden",
        "heads": "decoder.heads",
        "pixel_layers": "decoder.pixel_layers",
        "pixel_ffn": "decoder.pixel_ffn",
        "decoder_layers": "decoder.decoder_layers",
        "decoder_ffn": "decoder.decoder_ffn",
        "points": "decoder.points",
        "center_text": "untrained.center_text",
        "train_backbone": "untrained.train_backbone",
        "scales": "passes.scales",
        "window": "passes.window",
        "overlap": "passes.overlap",
        "chunk": "passes.chunk",
    },
    "filo": {
        "descriptions.table": "descriptions",
        "descriptions._target_": None,
        "class_list": "texts.class_list",
        "class_text": "texts.class_text",
        "generic_descriptions": "texts.generic",
        "n_ctx": "texts.context_length",
        "pair_norm": "texts.pair_norm",
        "kernels": "mmci.kernels",
        "adapter_reduction": "adapter.reduction",
        "adapter_temperature": "adapter.temperature",
        "logit_scale": "maps.logit_scale",
        "gaussian": "maps",
        "map_norm": "maps.scaling",
        "box_threshold": "boxes.box_threshold",
        "text_threshold": "boxes.text_threshold",
        "area_threshold": "boxes.area_threshold",
        "phrase_match": "boxes.phrase_match",
        "score_cut": "boxes.score_cut",
        "cells": "boxes.cells",
        "outside_factor": "boxes.outside_factor",
        "clip_boxes": "boxes.clip",
        "training": "stages.schedule",
        "epochs": "stages.epochs",
        "stage1_epochs": "stages.first",
        "stage2_epochs": "stages.second",
        "lr_heads": "stages.lr_heads",
        "lr_prompts": "stages.lr_prompts",
        "lr_adapter": "stages.lr_adapter",
    },
}
# method name -> {new dotted key below `method` -> {old value -> new one}}
METHOD_VALUES: dict[str, dict[str, dict[Any, Any]]] = {
    "promptad": FEW_SHOT_VALUES,
    "finegrainedad": {
        **FEW_SHOT_VALUES,
        "region.pool": {"code": "published"},
        "region.mask": {"image0": "published", "own": "each"},
    },
    "anovl": {"adaptation.optimizer_state": {"carry": "published"}},
    "saa": {
        "prompts.object_word": {"parsed": "published"},
        "fusion": {"official": "published"},
        "channel_order": {"official": "published"},
    },
    "filo": {
        "layers": {None: "quarters"},
        "token_capture": {"reference": "published", "per_layer": "paper"},
        "texts.class_text": {"last": "published", "own": "paper"},
        "texts.pair_norm": {True: "published", False: "paper"},
        "mmci.fuse": {"features": "published", "similarities": "paper"},
        "maps.scaling": {"none": "published", "minmax": "paper"},
        "score": {"raw": "published", "softmax": "paper"},
        "boxes.phrase_match": {"reference": "published"},
        "boxes.cells": {"reference": "published"},
        "boxes.score_cut": {"none": None},
        "stages.schedule": {"staged": "published", "joint": "paper"},
    },
    "adaclip": {
        "prompts.text_mode": {"overwrite": "published", "insert": "paper"},
        "hsf.mode": {"code": "published"},
        "score_without_hsf": {"cls": "published", "map_max": "paper"},
        "projection": {None: "linear"},
    },
    "anomalyclip": {"layers": {None: "last"}},
    "faprompt": {
        "layers": {None: "last"},
        "select": {"first": "published", "topk": "paper"},
        "score": {"code": "published"},
    },
    "winclip": {"variant": {"anomalib": "paper", "cao": "published"}},
}
# old dotted key at the top of a configuration -> new one
TOP_KEYS: dict[str, str | None] = {"towers": "as_published", "backbone.aligned_patches": None}
# old last part of a dotted key below `dataset`, on whichever side or in whichever member of a union -> new one
DATASET_KEYS = {"official_categories": "published_categories"}
# beginning of an old `_target_` -> new one
TARGETS = {
    "anomaly_vlm.data.procedural_road.": "anomaly_vlm.data.drawn.roads.",
    "anomaly_vlm.data.procedural.": "anomaly_vlm.data.drawn.products.",
}
# keys that came later, with the value that says what older versions did
ADDED: dict[str, Any] = dict.fromkeys(("gradient_clip", "epochs_on", "head_rates", "detector", "segmenter"))
ADDED_IN = {"pixels.decode": "full", "cache.pixels": False}  # the same, in a group where the configuration has it


def migrated(config: Any) -> Any:
    """A stored configuration, as plain containers, under today's names.

    Args:
        config: As a checkpoint holds it, of any version of the suite. It is not changed. What is no mapping is handed
            back as it is, for `runs.trust.foreign_config` to report.
    """
    if not isinstance(config, Mapping):
        return config
    flat = _flat(config)
    name = str(config.get("name", ""))
    keys = {**TOP_KEYS, **{f"method.{old}": new and f"method.{new}" for old, new in METHOD_KEYS.get(name, {}).items()}}
    moved: dict[str, Any] = {}
    for key, value in flat.items():
        new = _renamed(_renamed_of_dataset(key), keys)
        if new is not None:
            moved[new] = value
    for key, values in METHOD_VALUES.get(name, {}).items():
        full = f"method.{key}"
        if full in moved and _hashable(moved[full]) and moved[full] in values:
            if moved[full] is None and all(later in config for later in ADDED):
                continue  # written since: null has today's meaning
            moved[full] = values[moved[full]]
    for key, value in moved.items():
        if isinstance(value, str) and "towers." in value:
            moved[key] = value = re.sub(r"(\$\{(?:oc\.select:)?)towers\.", r"\1as_published.", value)
        if isinstance(value, str) and "${oc.env:" in value:
            moved[key] = "auto"  # a folder of this machine, not of the one that wrote the file
        if key.rpartition(".")[2] == "_target_" and isinstance(value, str):
            moved[key] = _moved_target(value)
    for key, value in ADDED_IN.items():
        if isinstance(config.get(key.partition(".")[0]), Mapping):
            moved.setdefault(key, value)
    return {**ADDED, **_nested(moved)}


def _moved_target(target: str) -> str:
    """The name of a target today."""
    for old, new in TARGETS.items():
        if target.startswith(old):
            return new + target.removeprefix(old)
    return target


def _renamed_of_dataset(key: str) -> str:
    """The new name of a dotted key whose last part is an option of a data source."""
    parent, _, last = key.rpartition(".")
    return f"{parent}.{DATASET_KEYS[last]}" if key.startswith("dataset.") and last in DATASET_KEYS else key


def _renamed(key: str, keys: Mapping[str, str | None]) -> str | None:
    """The new name of a dotted key; whole branches move with their parent. None: gone."""
    names = key.split(".")
    for end in range(len(names), 0, -1):
        parent = ".".join(names[:end])
        if parent in keys:
            new = keys[parent]
            return None if new is None else ".".join([new, *names[end:]])
    return key


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists and empty mappings are leaves."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and all(isinstance(k, str) and "." not in k for k in value):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return config


def _hashable(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | None)
