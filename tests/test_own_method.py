"""A method, a loss, a data set, a callback and their YAMLs outside the package: `examples/own_method`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.own_conf import own_folders, with_search_path

FOLDER = Path(__file__).parents[1] / "examples" / "own_method"
QUICK = [
    "train_limit=6",
    "backbone=tiny_random",
    "image_size=64",
    "dataset.train.size=64",
    "pictures.per_category=0",
    "pictures.curves=false",
    "compare_untrained=false",
    "callbacks.progress=none",
    "trainer=cpu",
]
OWN_CONF = ["--config-dir", "own_method/conf"]


IN_TURN = "import json, sys; from anomaly_vlm.cli import main; print([main(w) for w in json.loads(sys.argv[1])])"


def call(*commands: list[str], installed: Path | None = None) -> subprocess.CompletedProcess:
    """Runs commands from the template's folder in one process, which prints their exit statuses last.

    `installed` holds what an installation leaves of the package.
    """
    places = [*([installed] if installed else []), FOLDER, FOLDER.parents[1]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-c", IN_TURN, json.dumps(commands)]
    return subprocess.run(command, cwd=FOLDER, env=env, capture_output=True, text=True, timeout=300)


def statuses(done: subprocess.CompletedProcess) -> list[int]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each bin, the rejected ones with a bright square and its mask."""
    root, random = tmp_path_factory.mktemp("bins"), np.random.default_rng(0)
    for name in ("ok", "reject"):
        (root / name).mkdir()
        for i in range(4):
            pixels = random.integers(60, 90, (48, 48, 3), dtype=np.uint8)
            if name == "reject":
                mask = np.zeros((48, 48), np.uint8)
                mask[8 * i : 8 * i + 16, 10:26] = 255
                pixels[mask > 0] = 250
                Image.fromarray(mask).save(root / name / f"{i}.mask.png")
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What `pip install` leaves beside the package: its entry points, as its `pyproject.toml` has them."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    place = tmp_path / "site" / "own_method-0.1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return place.parent


def test_it_trains_evaluates_and_goes_on(bins: Path, tmp_path: Path) -> None:
    data, run = ["dataset=two_bins", f"dataset.test.root={bins}"], tmp_path / "run"
    own = [
        *data,
        "trust=[own_method]",
        "callbacks=gradient_log",
        "callbacks.gradient_log.every=1",
        "trainer.log_every_n_steps=1",
    ]
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    done = call(
        ["train", "method=text_probe", *OWN_CONF, *own, *QUICK, f"output_dir={run}"],
        ["evaluate", ckpt, "trust=[own_method]", f"output_dir={tmp_path / 'again'}"],
        ["evaluate", ckpt, f"output_dir={tmp_path / 'refused'}"],
    )
    assert statuses(done) == [0, 0, 2], done.stderr
    assert "tested on two_bins (8 images)" in done.stdout
    log = (run / "logs" / "version_0" / "metrics.csv").read_text()
    assert "train/dice" in log and "gradients/probe.weight" in log
    results = json.loads((run / "metrics.json").read_text())["results"]
    assert results["mean/pixel_auroc"] is not None
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["results"] == results
    line = done.stderr.splitlines()[-1]
    assert "asks to run 'own_method." in line and "trust=[own_method]" in line

    assert statuses(call(["train", f"resume={run}", "epochs=3", "trust=[own_method]"])) == [0]
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_installed_it_needs_neither_folder_nor_trust(installed: Path, tmp_path: Path) -> None:
    words = ["method=text_probe", *QUICK, "eval_limit=12", f"output_dir={tmp_path / 'run'}"]
    run = call(["train", *words], installed=installed)
    assert statuses(run) == [0] and "text_probe on tiny_random" in run.stdout


def test_help_and_messages_know_the_choices() -> None:
    shown = call(["train", "--help", *OWN_CONF])
    lines = {line.split("=")[0].strip(): line for line in shown.stdout.splitlines() if "= " in line}
    for group, name in (("method", "text_probe"), ("dataset", "two_bins"), ("callbacks", "gradient_log")):
        assert name in lines[group] and name not in choices(group)
    words = [f"hydra.searchpath=[file://{FOLDER}/own_method/conf]"]
    assert "text_probe" in choices("method", words) and choices("source", words).count("two_bins") == 1
    with pytest.raises(UserError, match=r"unknown method 'text_prob': .*did you mean text_probe"):
        compose(["method=text_prob", *words])
    with pytest.raises(UserError, match=r"nearest are .*method\.normal|nearest are"):
        compose(["method=text_probe", "epoch=2", *words])


def test_several_folders_are_one_search_path(tmp_path: Path) -> None:
    for name in ("a", "b, c"):
        (tmp_path / name).mkdir()
    words = [
        f"hydra.searchpath=[file://{tmp_path / 'a'}]",
        "seed=1",
        f"hydra.searchpath=['file://{tmp_path / 'b, c'}']",
    ]
    assert own_folders(words) == [tmp_path / "a", tmp_path / "b, c"]
    merged = with_search_path(words)
    assert merged[1] == "seed=1" and len(merged) == 2 and own_folders(merged) == own_folders(words)


@pytest.mark.parametrize("place", ["file:///nowhere/at/all", "pkg://no_such_package"])
def test_a_place_that_is_none_is_rejected(place: str) -> None:
    with pytest.raises(UserError, match=f"hydra.searchpath names '{place}', which is no folder"):
        compose(["method=adaclip", f"hydra.searchpath=[{place}]"])
