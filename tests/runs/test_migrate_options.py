"""Configurations of older checkpoints: options of the methods under today's names and words."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_vlm.runs.migrate import migrated


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


def test_options_of_older_data_sources() -> None:
    old = {"test": {"official_categories": ["a"]}, "train": {"sources": {"mvtec_ad": {"official_categories": ["b"]}}}}
    new = migrated({"name": "winclip", "dataset": old})["dataset"]
    assert new["test"] == {"published_categories": ["a"]}
    assert new["train"] == {"sources": {"mvtec_ad": {"published_categories": ["b"]}}}
