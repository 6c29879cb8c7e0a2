"""The checkpoints that ship beside the nano CLIP: they belong to its weights, and see damage at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm import load_checkpoint
from anomaly_vlm.cli import main
from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.runs.checkpoints import FOLDER, Checkpoint, shipped
from tests.data.trees import picture


@pytest.mark.parametrize("name", shipped())
def test_it_is_small_and_says_what_it_learned_from(name: str) -> None:
    assert (FOLDER / f"{name}.ckpt").stat().st_size < 1_000_000
    assert "drawn pictures" in Checkpoint.read(f"package:{name}").trained_on


@pytest.mark.parametrize("name", shipped())
def test_it_tells_damage_from_none(name: str) -> None:
    """On ten leathers, which are easy: most damaged ones score above most flawless ones."""
    method = load_checkpoint(f"package:{name}")
    samples = ProceduralSource(test_count=20, categories=["leather"], seed=5).samples("test")
    drawn = [sample.drawing.draw().image for sample in samples if sample.drawing is not None]
    scores = method(drawn, category="leather").score.tolist()
    good, bad = (
        [score for score, sample in zip(scores, samples, strict=True) if sample.label == label] for label in (0, 1)
    )
    assert sum(b > g for b in bad for g in good) > 0.7 * len(bad) * len(good)


def test_prediction_needs_nothing_but_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        picture(tmp_path / "parts" / f"{i}.png")
    assert main(["predict", "images=parts", "output_dir=out"]) == 0
    assert "trained on drawn pictures of 48 families" in capsys.readouterr().out
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 3
