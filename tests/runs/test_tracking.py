"""How loggers name a run, and what is told before any long work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from anomaly_vlm.errors import UserError
from anomaly_vlm.names import shortest_names
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.run_names import LONGEST_NAME, name_run, run_name
from anomaly_vlm.runs.sweeps import expand, plan
from anomaly_vlm.runs.tracking import tracked


def test_names_are_as_short_as_tells_keys_apart() -> None:
    keys = ["method.prompts.depth", "method.hsf.k", "optimizer.lr", "method.stages.lr", "seed"]
    assert shortest_names(keys) == {
        "method.prompts.depth": "depth",
        "method.hsf.k": "k",
        "optimizer.lr": "optimizer.lr",
        "method.stages.lr": "stages.lr",
        "seed": "seed",
    }
    assert shortest_names(["seed", "method.seed"]) == {
        "seed": "seed",
        "method.seed": "method.seed",
    }  # one ends the other


def test_a_run_of_a_sweep_is_named_by_what_varies(tmp_path: Path) -> None:
    cfg = compose(["method=adaclip", "seed=2"])
    assert run_name(cfg) == "adaclip procedural_to_procedural seed=2"
    words = ["method=adaclip", "++method.prompts.depth=2", "optimizer.lr=0.01", "seed=2", "logger=wandb"]
    OmegaConf.update(cfg, "sweep_overrides", words, force_add=True)
    OmegaConf.update(cfg, "sweep_varying", ["++method.prompts.depth=2", "seed=2"], force_add=True)
    name_run(cfg, tmp_path / "sweeps" / "adaclip" / "today" / "3", "train")
    assert cfg.tracking.name == "adaclip depth=2 seed=2"
    assert cfg.tracking.group == "adaclip/today" and cfg.tracking.job_type == "train"
    cfg.sweep_varying = None
    assert run_name(cfg) == "adaclip depth=2 lr=0.01 seed=2"
    cfg.sweep_overrides = [f"method.key{i}=value" for i in range(30)]
    assert len(run_name(cfg)) == LONGEST_NAME


def test_the_jobs_of_a_sweep_have_names_of_their_own() -> None:
    words = ["method=adaclip", "epochs=1", "method.prompts.depth=2,4", "seed=0,1"]
    jobs = plan(expand(words, {}))
    names = [run_name(job.cfg) for job in jobs]
    assert names == [f"adaclip depth={depth} seed={seed}" for depth in (2, 4) for seed in (0, 1)]


def test_names_of_the_user_stay(tmp_path: Path) -> None:
    cfg = compose(["method=adaclip", "tracking.name=mine", "tracking.group=ours", "tracking.tags=[a,b]"])
    name_run(cfg, tmp_path, "evaluate")
    assert (cfg.tracking.name, cfg.tracking.group, cfg.tracking.job_type) == ("mine", "ours", "evaluate")


def test_an_agents_run_is_named_by_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("method.prompts.depth: {value: 4}\nwandb_version: 1\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    assert run_name(compose(["method=adaclip", "seed=1"])) == "adaclip depth=4 seed=1"


@pytest.mark.parametrize("kind", ["wandb", "tensorboard", "mlflow"])
def test_a_missing_package_is_reported_first(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == kind else found(name))
    cfg = compose(["method=adaclip", f"logger={kind}"])
    wanted = rf"logger={kind} needs the package {kind}: install it with pip install 'anomaly-vlm\[{kind}\]'"
    with pytest.raises(UserError, match=wanted), tracked(cfg, tmp_path, "train"):
        pass


def test_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = compose(["method=adaclip", "logger=wandb", "logger.wandb.offline=false"])
    with pytest.raises(UserError, match="online needs a key"), tracked(cfg, tmp_path, "train"):
        pass


def test_there_must_be_something_to_attach_to(tmp_path: Path) -> None:
    cfg = compose(["method=adaclip", "tracking.attach=true"])
    with (
        pytest.raises(UserError, match="no checkpoint of a training is given"),
        tracked(cfg, tmp_path, "evaluate"),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"tracking\.json' names none"),
        tracked(cfg, tmp_path, "evaluate", training=tmp_path),
    ):
        pass
