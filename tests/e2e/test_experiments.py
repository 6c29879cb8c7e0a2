"""Every experiment that ships: each runs its first job on tiny limits, without a download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.runs.compose import compose_job
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.sweeps import expand
from tests.methods.test_every_method import PICTURES, SMALL, TINY, WORDS, trains_on

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DRAWN = ["dataset=procedural"]
ROADS = ["dataset=procedural_road", "source@dataset.train=procedural_road"]
# These methods' models are downloaded; boxes and masks then come from contrast in the image.
WITHOUT_MODELS = {"filo": ["detector=components"], "saa": ["detector=components", "segmenter=contrast"]}


def first_job(experiment: str) -> list[str]:
    """The overrides of an experiment's first job."""
    words = [f"experiment={experiment}"]
    return expand(words, compose_job(words)[1]["sweeper"])[0]


def small(experiment: str) -> list[str]:
    """Overrides that take the place of data sets and towers that are not here, and make the run one of seconds."""
    words = first_job(experiment)
    cfg, _ = compose_job(words)
    method = cfg.choices["method"]
    data = ROADS if method == "vl4ad" else DRAWN
    kept = [word for word in WORDS.get(method, TINY) if not word.startswith("shots=")]
    pictures = (
        []
        if method == "vl4ad"
        else [word for word in PICTURES if trains_on(method) == "dataset" or "train" not in word]
    )
    weights = ["++backbone.pretrained=null"] if cfg.backbone.get("pretrained") else []  # the tiny tower has none
    few = ["shots=1"] if cfg.shots else []
    group = ["backbone=tiny_random"] if "backbone=" not in " ".join(kept) else []
    found = [
        *words,
        *data,
        *group,
        *weights,
        *SMALL,
        *pictures,
        *kept,
        *(word for word in WITHOUT_MODELS.get(method, ()) if cfg.get(word.partition("=")[0]) is not None),
        *few,
        "seeds=null",
        "shots_list=null",
        "compare_untrained=false",
    ]
    return [*found, "measure_cost=false", "num_workers=0"]


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_runs(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *small(experiment), "output_dir=run"]) == 0
    results = json.loads(Path("run/metrics.json").read_text())["results"]
    assert any(value is not None for key, value in results.items() if key.startswith("mean/"))
