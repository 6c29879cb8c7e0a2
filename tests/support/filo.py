"""FiLo on a golden fixture: backbone, method with the official parameters, batch, stored detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import Detector, Picture, Queries
from anomaly_vlm.detectors.boxes import queries_of
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.filo import FiLo
from anomaly_vlm.runs.migrate import migrated
from tests.support.conf import loss_conf
from tests.support.golden import Fixture, golden_backbone

FIRST_NAMES = (
    "layers", "n_plain", "n_ctx", "kernels", "adapter_reduction", "logit_scale", "adapter_temperature", "gaussian",
    "box_threshold", "text_threshold", "area_threshold", "outside_factor", "token_capture", "class_text", "pair_norm",
    "phrase_match", "score_cut", "cells", "clip_boxes", "score", "class_list",
)  # fmt: skip


class StoredDetector(Detector):
    """Stands for a model whose raw output a fixture holds; FiLo finds that in `detections`."""

    name = "stored"

    def look(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        raise AssertionError("FiLo asked the detector itself")

    def identity(self) -> dict[str, Any]:
        return {}


def info(fixture: Fixture, path: Path) -> dict[str, Any]:
    """The strings in the fixture's metadata."""
    with safe_open(path.with_suffix(".safetensors"), "pt") as file:
        return json.loads(file.metadata()["info"])


def official_parameters(fixture: Fixture) -> dict[str, torch.Tensor]:
    """The official file's content, with the convolution weights unpacked from four bits."""
    state = fixture.inputs("ckpt/")
    for key, packed in fixture.inputs("ckpt_q4/").items():
        both = [(packed & 15).float() - 8, (packed >> 4).float() - 8]  # even, odd output channels
        state[key] = torch.stack(both, dim=1).flatten(0, 1) * fixture.input(f"ckpt_scale/{key}")
    return state


def build(fixture: Fixture, group: str, folder: Path, **more: Any) -> FiLo:
    o = fixture.options(group)
    clip = golden_backbone(
        fixture.settings["backbone"],
        activation=o["activation"],
        pos_resize=o["pos_resize"],
        image_size=fixture.settings["image_size"],
    )
    loss = loss_conf("filo")
    loss["dice"]["over"] = o["dice"]
    old = {name: o[name] for name in FIRST_NAMES if name in o}
    options = migrated({"name": "filo", "method": old})["method"]  # fixtures have the options' first names
    detector = StoredDetector() if o["detector"] == "stored" else None
    method = FiLo(clip, detector=detector, losses=build_terms(loss), **{**options, **more})
    path = folder / "published.safetensors"
    save_file(official_parameters(fixture), path)
    return load_published(method, path).eval()


def make_batch(fixture: Fixture, rows: slice = slice(None)) -> Batch:
    mask = fixture.input("in/mask").to(torch.uint8)
    categories = fixture.options()["image_categories"]
    names = [f"image {i}" for i in range(len(mask))]
    return Batch(
        fixture.input("in/images")[rows],
        fixture.input("in/label").long()[rows],
        mask[rows],
        categories[rows],
        names[rows],
        torch.arange(len(mask))[rows],
        list(names)[rows],
    )


def give_detections(method: FiLo, fixture: Fixture, words: dict[str, Any]) -> None:
    """The stored raw answers, under the captions that the fixture was made with."""
    for i, (caption, pieces) in enumerate(zip(words["captions"], words["tokens"], strict=True)):
        logits, boxes = fixture.input("det/logits")[i], fixture.input("det/boxes_cxcywh")[i]
        method.detections[f"image {i}", caption] = queries_of(logits, boxes, pieces, f"image {i}")
