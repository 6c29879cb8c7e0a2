"""Sentences changed on purpose: what each change does, and that methods read the changed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anomaly_vlm import load_backbone
from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.winclip import WinCLIP
from anomaly_vlm.texts.rewrite import MODES, random_word, rewriter

SENTENCE = "a photo of a damaged metal nut without flaw."


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("nameless", "a photo of a damaged object without flaw."),
        ("swapped", "a photo of a undamaged metal nut with flaw."),
    ],
)
def test_a_change(mode: str, expected: str) -> None:
    change = rewriter(mode, ["metal_nut", "nut"])
    assert change(SENTENCE) == expected
    if mode == "swapped":
        assert change(change(SENTENCE)) == SENTENCE


def test_random_words_are_always_the_same_and_leave_learned_places() -> None:
    change = rewriter("random")
    words = change(SENTENCE).rstrip(".").split()
    assert len(words) == len(SENTENCE.split()) and not set(words) & set(SENTENCE.rstrip(".").split())
    assert words[0] == words[3] == random_word("a") and change(SENTENCE) == change(SENTENCE)
    assert change("X X X object.").startswith("X X X ")
    different = {
        random_word(word) for word in ("damaged", "flawless", "perfect", "broken", "defect", "without", "with")
    }
    assert len(different) == 7


def test_mistakes_are_rejected() -> None:
    assert rewriter("as_written") is None
    with pytest.raises(UserError, match="unknown texts 'shuffled'"):
        rewriter("shuffled")
    with pytest.raises(UserError, match="needs the names of the categories"):
        rewriter("nameless")


def test_text_features_follow_the_change() -> None:
    features = {}
    for mode in MODES:
        backbone = load_backbone("tiny_random")
        backbone.rewrite = rewriter(mode, ["gear"])
        features[mode] = WinCLIP(backbone).text_features("gear")
    for i, one in enumerate(MODES):
        for other in MODES[i + 1 :]:
            assert not torch.allclose(features[one], features[other]), (one, other)


def test_a_run_with_changed_texts_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["method=winclip", "backbone=tiny_random", "image_size=64", "eval_limit=8", "pictures.per_category=0"]
    words += ["trainer=cpu", "dataset.test.size=64", "callbacks.progress=none", "measure_cost=true"]
    found = {}
    for mode in ("as_written", "nameless"):
        assert main(["train", *words, f"texts={mode}", f"output_dir={mode}"]) == 0
        found[mode] = json.loads(Path(f"{mode}/metrics.json").read_text())
    assert "texts changed on purpose: nameless" in capsys.readouterr().out and found["nameless"]["texts"] == "nameless"
    assert found["as_written"]["results"] != found["nameless"]["results"]
    cost = found["nameless"]["cost"]
    assert cost["trainable_parameters"] == 0 and cost["training_seconds"] is None
    assert cost["gflops"] > 0 and cost["ms_per_image"] > 0 and cost["peak_memory_mb"] > 100
    assert main(["train", "method=dinov2", "backbone=tiny_random", "texts=mixed"]) == 2
    assert "unknown texts 'mixed'" in capsys.readouterr().err
