"""Configurations of older checkpoints: options of the methods under today's names and words."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_vlm.runs.migrate import ADDED, migrated


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (
            "adaclip",
            {"prompts": {"text_mode": "overwrite", "depth": None}, "hsf": {"mode": "code", "k": 20}, "projection": None},
            {"prompts": {"text_mode": "published", "depth": None}, "hsf": {"mode": "published", "k": 20},
             "projection": "linear"},
        ),
        (
            "adaclip",
            {"prompts": {"text_mode": "insert"}, "hsf": {"mode": "block"}, "score_without_hsf": "map_max"},
            {"prompts": {"text_mode": "paper"}, "hsf": {"mode": "block"}, "score_without_hsf": "paper"},
        ),
        ("anomalyclip", {"layers": None}, {"layers": "last"}),
        ("anomalyclip", {"layers": [2, 4]}, {"layers": [2, 4]}),
        (
            "faprompt",
            {"layers": None, "select": "topk", "score": "code"},
            {"layers": "last", "select": "paper", "score": "published"},
        ),
        (
            "winclip",
            {"texts": {"_target_": "anomaly_vlm.texts.load_texts", "table": "winclip_prompts"}, "variant": "cao"},
            {"texts": "winclip_prompts", "variant": "published"},
        ),
        (
            "filo",
            {"descriptions": {"_target_": "anomaly_vlm.texts.load_texts", "table": "filo_descriptions"}, "layers": None,
             "pair_norm": True, "mmci": {"fuse": "similarities"}, "kernels": [[1, 1]],
             "gaussian": {"kernel": 3, "sigma": 4.0},
             "score_cut": "none", "training": "staged", "epochs": 4, "score": "raw"},
            {"descriptions": "filo_descriptions", "layers": "quarters", "texts": {"pair_norm": "published"},
             "mmci": {"fuse": "paper", "kernels": [[1, 1]]}, "maps": {"kernel": 3, "sigma": 4.0},
             "boxes": {"score_cut": None},
             "stages": {"schedule": "published", "epochs": 4}, "score": "published"},
        ),
        (
            "vl4ad",
            {"concepts": {"_target_": "anomaly_vlm.texts.load_texts", "table": "vl4ad_prompts"}, "ensemble": "none",
             "queries": 20, "scales": [1.0], "center_text": None},
            {"concepts": "vl4ad_prompts", "clip_classifier": {"ensemble": "none"}, "decoder": {"queries": 20},
             "passes": {"scales": [1.0]}, "untrained": {"center_text": None}},
        ),
        (
            "saa",
            {"object_word": "parsed", "fusion": "official", "generic": {"objects": 1}, "saliency_size": 256},
            {"prompts": {"object_word": "published", "generic": {"objects": 1}}, "fusion": "published",
             "saliency": {"size": 256}},
        ),
        (
            "promptad",
            {"n_ctx": 4, "n_pro": {"seg": 1, "cls": 3}, "memory_layers": None, "memory_tap": "block",
             "temperature": "raw_logit_scale", "official_category": None},
            {"contexts": {"length": 4, "count": {"seg": 1, "cls": 3}}, "memory": {"layers": "published", "tap": "paper"},
             "temperature": "published", "published_category": None},
        ),
        (
            "finegrainedad",
            {"prompts": {"_target_": "anomaly_vlm.texts.load_texts", "table": "promptad_prompts"},
             "region": {"pool": "code", "mask": "own"}},
            {"prompts": "promptad_prompts", "region": {"pool": "published", "mask": "each"}},
        ),
        (
            "anovl",
            {"adapt": True, "optimizer_state": "carry"},
            {"adapt": True, "adaptation": {"optimizer_state": "published"}},
        ),
        (
            "april_gan",
            {"texts": {"_target_": "anomaly_vlm.texts.load_texts", "table": "mine.json"}, "layers": None},
            {"texts": "mine.json", "layers": None},
        ),
    ],
)  # fmt: skip
def test_options_of_older_checkpoints(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    config = migrated({"name": name, "method": old, "backbone": {"name": "nano", "aligned_patches": True}})
    assert config["method"] == new
    assert config["backbone"] == {"name": "nano"}


def test_null_has_todays_meaning_in_todays_checkpoints() -> None:
    later = dict.fromkeys(ADDED)
    assert migrated({"name": "filo", "method": {"layers": None}, **later})["method"] == {"layers": None}
