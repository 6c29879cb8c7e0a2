"""Paths with any character of a file system, as overrides and as variables of the Makefile."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.names import elements
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.path_words import literal_paths
from tests.data.trees import mask, picture

ROOT = Path(__file__).parents[2]
NAMES = [
    "é 中文", "a b", "x=1", "(1)", "a,b", "[new]", "{a}", "#5", "~tmp", "R&D", "it's", "null", "2024", "1e5", "true", "a:b",
    "q\"q",
    "back\\slash", "-dash", "100%", "ends in \\",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_root_is_taken_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for value in (name, str(tmp_path / name)):
        if value == "null":
            continue  # the word says that there is none
        cfg = compose(["method=winclip", "dataset=folder", f"dataset.test.root={value}", f"output_dir={value}/out"])
        assert str(cfg.dataset.test.root) == value
        assert cfg.output_dir == f"{value}/out"


@pytest.mark.parametrize(
    "name", ["1e5", "null", "true", "1_000", "001", "é", "a&b", "it's", "x(y)", "正常", "a b", "plain"]
)
def test_names_are_texts(name: str) -> None:
    words = [f"dataset.test.class_words={{object: {name}, b: 'c, d'}}", f"+dataset.test.reader.normal=[{name}]"]
    cfg = compose(["method=winclip", "dataset=folder", f"dataset.test.categories=[{name}, 'a, b', two]", *words])
    assert list(cfg.dataset.test.categories) == [name, "a, b", "two"]
    assert dict(cfg.dataset.test.class_words) == {"object": name, "b": "c, d"}
    assert list(cfg.dataset.test.reader.normal) == [name]
    alone = compose(["method=winclip", "dataset=folder", f"dataset.test.categories={name}"]).dataset.test.categories
    assert alone == (None if name == "null" else name)


def test_each_value_of_a_sweep_is_a_list_of_texts() -> None:
    words = ["a.categories=[1e5,x y],[b c]", "a.class_words={a: b},{a: c d}", "a.categories=choice([a],[b])"]
    quoted = ["a.categories=['1e5','x y'],['b c']", "a.class_words={a: b},{a: 'c d'}", words[2]]
    assert literal_paths(words, sweep=True) == quoted


def test_a_new_folder_may_have_any_name_outside_a_sweep(tmp_path: Path) -> None:
    new = str(tmp_path / "new/a=b,c [d] #e")
    assert compose(["method=winclip", f"output_dir={new}"]).output_dir == new
    words = literal_paths(["dataset.test.root=/a,/b"], sweep=True)
    assert words == ["dataset.test.root=/a,/b"]


def test_a_path_that_reads_as_an_interpolation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "${x}").mkdir()
    with pytest.raises(UserError, match="rename the folder"):
        compose(["method=winclip", "dataset=folder", f"dataset.test.root={tmp_path}/${{x}}/sub"])


def test_lists_hold_names_with_commas() -> None:
    assert elements("a, 'b,c' ,\"d's\",it's,[e,f]") == ["a", "b,c", "d's", "it's", "[e,f]"]


def test_what_is_no_path_is_read_as_ever() -> None:
    cfg = compose(
        ["method=adaclip", "method.layers=[1, 2]", "seeds=[0,1]", "epochs=2", "cache.folder=${oc.env:HOME,x}"]
    )
    assert (list(cfg.method.layers), list(cfg.seeds), cfg.epochs) == ([1, 2], [0, 1], 2)


@pytest.mark.e2e
def test_a_whole_evaluation_in_a_folder_of_odd_characters(tmp_path: Path) -> None:
    odd = tmp_path / "é 中文 (1), [x] = #1 ~ R&D it's"
    for i in range(2):
        picture(odd / f"good/{i}'s.png")
        picture(odd / f"dent/{i}'s.png")
        mask(odd / f"ground_truth/dent/{i}'s.png")
    words = ["method=winclip", "backbone=tiny_random", "dataset=folder", "dataset.train=null"]
    assert main(["evaluate", *words, f"dataset.test.root={odd}", f"output_dir={odd / 'out'}"]) == 0
    assert (odd / "out/results.csv").is_file()
    assert main(["predict", *words[:2], f"images={odd / 'dent'}", f"output_dir={odd / 'out 2'}"]) == 0
    assert (odd / "out 2/scores.csv").read_text(encoding="utf-8").count("s.png") >= 2


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
@pytest.mark.parametrize("target, variable, key", [
    ("train", "DATA", "dataset.test.root"), ("train", "TRAIN_DATA", "dataset.train.root"), ("train", "RESUME", "resume"),
    ("evaluate", "CKPT", "ckpt"), ("predict", "IMAGES", "images"), ("descriptions", "ANSWERS", "answers"),
])  # fmt: skip
def test_variables_of_the_makefile_reach_the_command(target: str, variable: str, key: str) -> None:
    value = "/é 中/a b=(1),[x]#~&'q$HOME$(date)${x}.png"
    done = subprocess.run(
        ["make", "-s", "-o", ".venv/.run", target, "CLI=printf '%s\\n'", f"{variable}={value}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{key}={value}" in done.stdout.splitlines()
