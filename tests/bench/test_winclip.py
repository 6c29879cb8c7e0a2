"""WinCLIP's benchmark on a tiny tower: it checks that all ways agree, and writes what it measured."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.bench import winclip
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.winclip import WinCLIP
from tests.support.tiny import tiny_architecture

SMALL = tiny_architecture(layers=2, text_layers=1, context_length=32)


def tiny(*, small: bool = False) -> tuple[WinCLIP, open_clip.CLIP]:
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL).eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=32)
    clip = ClipBackbone(model, name="tiny", weights="random", tokenizer=tokenizer, image_size=32)
    return WinCLIP(clip).eval(), model


def test_every_limit_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(winclip, "make_method", tiny)
    monkeypatch.setattr(winclip, "measure", lambda *_: SimpleNamespace(memory=1.0))
    monkeypatch.setattr(winclip, "LARGE", (80, 32, 10))
    winclip.run(tmp_path, quick=True)
    rows = {row["what"]: row for row in csv.DictReader((tmp_path / "winclip.csv").read_text().splitlines())}
    assert len(rows) >= 11
    assert float(rows["windows: FLOPs, of their share of tokens"]["measured"].rstrip("x")) > 0


def test_ways_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch):
    method, _ = tiny()
    monkeypatch.setattr(method, "encode_sides", lambda _: torch.zeros(2, 16))
    with torch.no_grad(), pytest.raises(UserError, match="text features differ"):
        winclip.text_limits(method, 1)
