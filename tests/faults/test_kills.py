"""Killed at a file operation, or at any moment: what resumes ends in what the unbroken run ended in."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anomaly_vlm.caching.entries import read_entry
from tests.faults.conftest import TINY, TRAIN, Server, check_whole, results, same_run

SEED = 20  # of the moments; another seed tries others


def spread(total: int, count: int) -> list[int]:
    """`count` of the numbers 1 to `total`, evenly."""
    return sorted({1 + i * (total - 1) // max(1, count - 1) for i in range(count)})


def go_on(server: Server, folder: Path, words: list[str]) -> None:
    """By `resume=` where a run has begun, by the same command before."""
    again = ["train", "resume=run"] if (folder / "run" / "config.yaml").is_file() else words
    outcome = server(again, folder)
    assert outcome.status == 0, outcome.err


def kill_training(server: Server, whole: Path, folder: Path, **when: object) -> bool:
    """Kills a training and resumes; whether it was killed before its end."""
    words = [*TRAIN, "output_dir=run"]
    outcome = server(words, folder, watch=str(folder / "run"), action="SIGKILL", **when)
    assert outcome.status in (-9, 0), outcome.err
    if (folder / "run").is_dir():
        check_whole(folder / "run")
        go_on(server, folder, words)
        assert same_run(folder / "run", whole)
        assert not list((folder / "run").rglob("*.unfinished")) or outcome.status == -9
    return outcome.status == -9


def operations(whole: Path) -> int:
    return int((whole.parent / "operations").read_text())


def test_killed_at_some_operations(server: Server, whole: Path, tmp_path: Path) -> None:
    for at in spread(operations(whole), 4)[1:3]:
        (tmp_path / str(at)).mkdir()
        assert kill_training(server, whole, tmp_path / str(at), at=at)


@pytest.mark.faults
def test_killed_at_operations(server: Server, whole: Path, tmp_path: Path, counted: Callable[..., None]) -> None:
    for at in spread(operations(whole), 20):
        (tmp_path / str(at)).mkdir()
        counted("kill at a file operation, training", kill_training(server, whole, tmp_path / str(at), at=at))
        shutil.rmtree(tmp_path / str(at))


@pytest.mark.faults
def test_killed_at_any_moment(server: Server, whole: Path, tmp_path: Path, counted: Callable[..., None]) -> None:
    seconds, moments = float((whole.parent / "seconds").read_text()), random.Random(SEED)
    killed = 0
    for number in range(45):
        folder = tmp_path / str(number)
        folder.mkdir()
        if kill_training(server, whole, folder, after=moments.uniform(0, seconds)):
            counted("kill at any moment, training")
            killed += 1
        else:
            seconds *= 0.9  # the machine is faster now than when the whole run was timed
        shutil.rmtree(folder)
        if killed == 15:
            break
    assert killed == 15


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        Image.new("RGB", (50 + number, 40), (number * 20, 90, 60)).save(folder / f"part {number}.png")
    return folder


COMMANDS = ("evaluation", "prediction", "sweep", "seeds")


def command(kind: str, whole: Path, images: Path) -> list[str]:
    ckpt = f"ckpt={whole / 'checkpoints' / 'last.ckpt'}"
    short = [*TRAIN, "train_limit=2", "epochs=1", "pictures.per_category=0"]
    return {
        "evaluation": ["evaluate", ckpt, "eval_limit=12", "output_dir=run"],
        "prediction": ["predict", ckpt, f"images={images}", "eval_batch_size=2", "output_dir=run"],
        "sweep": ["sweep", *short[1:], "seed=0,1", "hydra.sweep.dir=run", "hydra.launcher.own_process=false"],
        "seeds": [*short, "seeds=[0,1]", "output_dir=run"],
    }[kind]


def answer(kind: str, folder: Path) -> object:
    """What a command has found."""
    run = folder / "run"
    if kind == "evaluation":
        return results(run), (run / "images.csv").read_text()
    if kind == "prediction":
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if kind == "sweep":
        return (run / "sweep.csv").read_text(), [results(run / name) for name in "01"]
    return (run / "seeds.csv").read_text(), [results(run / f"seed_{name}") for name in "01"]


@pytest.mark.faults
@pytest.mark.parametrize("kind", COMMANDS)
def test_other_commands_killed_at_operations(
    kind: str, server: Server, whole: Path, images: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    words = command(kind, whole, images)
    (tmp_path / "unbroken").mkdir()
    unbroken = server(words, tmp_path / "unbroken", watch=str(tmp_path / "unbroken" / "run"))
    assert unbroken.status == 0, unbroken.err
    expected = answer(kind, tmp_path / "unbroken")
    resumed = 0
    for at in spread(unbroken.operations, 12 if kind in ("evaluation", "prediction") else 8):
        folder = tmp_path / str(at)
        folder.mkdir()
        broken = server(words, folder, watch=str(folder / "run"), action="SIGKILL", at=at)
        assert broken.status == -9
        again = server(words, folder)
        assert again.status == 0, again.err
        assert answer(kind, folder) == expected
        resumed += "images are scored already" in again.out and "resumes: 0 of" not in again.out
        counted(f"kill at a file operation, {kind}")
        shutil.rmtree(folder)
    assert resumed > 3 or kind != "prediction"


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "times"), [("evaluation", 11), ("prediction", 12), ("sweep", 9)])
def test_other_commands_killed_at_any_moment(
    kind: str, times: int, server: Server, whole: Path, images: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    words, moments = command(kind, whole, images), random.Random(SEED)
    (tmp_path / "unbroken").mkdir()
    unbroken = server(words, tmp_path / "unbroken")
    expected = answer(kind, tmp_path / "unbroken")
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        server(words, folder, action="SIGKILL", after=moments.uniform(0, unbroken.seconds))
        assert server(words, folder).status == 0
        assert answer(kind, folder) == expected
        counted(f"kill at any moment, {kind}")
        shutil.rmtree(folder)


@pytest.mark.faults
def test_token_cache_killed_at_any_moment(server: Server, tmp_path: Path, counted: Callable[..., None]) -> None:
    words = [word for word in TINY if "hsf" not in word and not word.startswith("method=")]
    words = ["train", "method=linear_heads", *words, "train_limit=6", "epochs=1", "pictures.per_category=0"]
    env = {"ANOMALY_VLM_CACHE": str(tmp_path / "unbroken_cache")}
    unbroken = server([*words, "output_dir=unbroken"], tmp_path, env=env)
    assert unbroken.status == 0, unbroken.err
    moments = random.Random(SEED)
    for number in range(13):
        cache = tmp_path / f"cache_{number}"
        env = {"ANOMALY_VLM_CACHE": str(cache)}
        server(
            [*words, f"output_dir=a{number}"], tmp_path, env=env, action="SIGKILL",
            after=moments.uniform(0, unbroken.seconds),
        )  # fmt: skip
        assert all(read_entry(path) is not None for path in cache.rglob("*.safetensors"))
        assert server([*words, f"output_dir=b{number}"], tmp_path, env=env).status == 0
        assert results(tmp_path / f"b{number}") == results(tmp_path / "unbroken")
        counted("kill at any moment, token cache")
