"""Damaged files: a training resumes from the state before, everything else is reported in one line."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.faults.conftest import TINY, TRAIN, Server, results, same_run
from tests.faults.test_kills import SEED, images

__all__ = ["images"]  # a fixture of another module
pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def stopped(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after its third state: the state before it is there, too."""
    folder = tmp_path_factory.mktemp("stopped")
    call = {"of": "anomaly_vlm.runs.trainer:write_checkpoint", "at": 4}
    assert server([*TRAIN, "output_dir=run"], folder, action="SIGKILL", call=call).status == -9
    assert sorted(path.name for path in (folder / "run/checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    return folder / "run"


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


@pytest.mark.parametrize("change", [flipped, cut])
def test_a_damaged_state_is_recognised(
    change: Callable[[bytes, random.Random], bytes],
    server: Server,
    stopped: Path,
    whole: Path,
    tmp_path: Path,
    counted: Callable[..., None],
) -> None:
    draw = random.Random(SEED)
    for number in range(5):
        folder = tmp_path / str(number)
        shutil.copytree(stopped, folder / "run")
        last = folder / "run" / "checkpoints" / "last.ckpt"
        last.write_bytes(change(last.read_bytes(), draw))
        again = server(["train", "resume=run"], folder)
        assert again.status == 0, again.err
        assert again.out.count("is damaged") == 1 and "resumes from the state before it" in again.out
        assert same_run(folder / "run", whole)
        counted("flipped bit or cut in a checkpoint")
        shutil.rmtree(folder)


def broken_checkpoints(good: Path) -> dict[str, Any]:
    """Contents of files by what is wrong with them: bytes, or what `torch.save` takes."""
    content = good.read_bytes()

    def changed(place: str, value: Any) -> dict[str, Any]:
        loaded = torch.load(good, weights_only=True)
        kept: Any = {name: loaded[name] for name in ("anomaly_vlm", "state_dict")}
        node, (*above, last) = kept, place.split(".")
        for key in above:
            node = node[key]
        node[last] = value
        return kept

    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    weights = torch.load(good, weights_only=True)["state_dict"]
    name = next(iter(weights))
    return {
        "empty": b"",
        "text": b"weights",
        "only the end of an archive": b"PK\x05\x06" + bytes(18),
        "cut": content[: len(content) // 2],
        "flipped": content[:999] + bytes([content[999] ^ 4]) + content[1000:],
        "a pickle that runs code": pickle.dumps(print),
        "a list": [1, 2],
        "no record": {"state_dict": weights},
        "no weights": changed("state_dict", {}),
        "a weight of another shape": {
            **changed("anomaly_vlm.version", "1"),
            "state_dict": {**weights, name: torch.zeros(7)},
        },
        "a weight that is a text": {**changed("anomaly_vlm.version", "1"), "state_dict": {**weights, name: "zero"}},
        "a weight that is no number": {
            **changed("anomaly_vlm.version", "1"),
            "state_dict": {**weights, name: torch.full_like(weights[name], float("nan"))},
        },
        "no configuration": changed("anomaly_vlm.config", None),
        "a deep configuration": changed("anomaly_vlm.config", deep),
        "another method": changed("anomaly_vlm.config.method._target_", "os.system"),
        "a resolver": changed("anomaly_vlm.config.name", "${oc.decode:'1'}"),
        "an unknown option": changed("anomaly_vlm.config.method.nothing", 1),
        "an option of another kind": changed("anomaly_vlm.config.image_size", "large"),
        "an image size without end": changed("anomaly_vlm.config.image_size", 10**9),
        "a fingerprint of other weights": changed("anomaly_vlm.fingerprint", "0"),
        "a threshold that is none": changed("anomaly_vlm.thresholds", {"object": [1]}),
    }


def test_broken_checkpoints(
    server: Server, whole: Path, images: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    for what, content in broken_checkpoints(whole / "checkpoints" / "last.ckpt").items():
        path = tmp_path / f"{what.replace(' ', '_')}.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        for words in (["evaluate", f"ckpt={path}", "eval_limit=2"], ["predict", f"ckpt={path}", f"images={images}"]):
            outcome = server([*words, "trainer=cpu", "output_dir=run"], tmp_path)
            assert outcome.status == 2, (what, outcome.status, outcome.err)
            assert outcome.line, what
            counted("broken checkpoint")


JUNK = {
    "empty": b"",
    "no text": b"\xff\xfe\x00\x01\x80",
    "deep": b"[" * 20_000,
    "a list": b"[1, 2]",
    "a number": b"3",
    "nothing": b"null",
    "nan": b'{"results": NaN}',
    "other kinds": b'{"results": {"mean/pixel_auroc": "high"}, "facts": 3, "rows": {}, "data": 1}',
    "yaml that multiplies": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n".encode()
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "yaml that runs code": b"a: !!python/object/apply:os.system [ls]\n",
}


def check_told(server: Server, words: list[str], folder: Path, what: str) -> None:
    """A command ends well, or with status 2 and one line."""
    outcome = server(words, folder)
    assert outcome.status in (0, 2), (what, outcome.status, outcome.err)
    assert outcome.line if outcome.status else "Traceback" not in outcome.err, what


def test_broken_files_of_a_run(
    server: Server, stopped: Path, whole: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    for what, content in JUNK.items():
        run, finished = tmp_path / "run", tmp_path / "runs" / "one"
        shutil.copytree(stopped, run)
        shutil.copytree(whole, finished)
        shutil.copytree(whole, tmp_path / "runs" / "two")  # which `report` shows, whatever the first one is
        (run / "config.yaml").write_bytes(content)
        check_told(server, ["train", "resume=run"], tmp_path, f"config.yaml: {what}")
        (finished / "metrics.json").write_bytes(content)
        check_told(server, ["report", "runs=runs"], tmp_path, f"metrics.json: {what}")
        counted("broken file of a run, a cache or an index")
        counted("broken file of a run, a cache or an index")
        shutil.rmtree(run)
        shutil.rmtree(tmp_path / "runs")


def test_broken_tables_of_a_stopped_prediction(
    server: Server, whole: Path, images: Path, tmp_path: Path, counted: Callable[..., None]
) -> None:
    ckpt = f"ckpt={whole / 'checkpoints' / 'last.ckpt'}"
    words = ["predict", ckpt, f"images={images}", "pictures=false", "eval_batch_size=2", "output_dir=run"]
    call = {"of": "anomaly_vlm.runs.journal:Journal.add", "at": 8}
    assert server(words, tmp_path, action="SIGKILL", call=call).status == -9
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "run", kept)
    assert server([*words[:-1], "output_dir=whole"], tmp_path).status == 0
    expected, journal = (tmp_path / "whole/scores.csv").read_bytes(), (kept / "predicted.jsonl").read_bytes()
    draw = random.Random(SEED)
    changes = [*JUNK.values(), cut(journal, draw), flipped(journal, draw), journal.replace(b'"row": [', b'"row": [3, ')]
    for content in changes:
        for name in ("predicted.jsonl", "scores.csv"):
            shutil.rmtree(tmp_path / "run")
            shutil.copytree(kept, tmp_path / "run")
            (tmp_path / "run" / name).write_bytes(content)
            outcome = server(words, tmp_path)
            assert outcome.status in (0, 2), (name, content[:40], outcome.err)
            assert outcome.line if outcome.status else (tmp_path / "run/scores.csv").read_bytes() == expected
            counted("broken file of a run, a cache or an index")


def test_broken_entries_of_a_cache(server: Server, tmp_path: Path, counted: Callable[..., None]) -> None:
    words = [
        "train",
        "method=linear_heads",
        *[word for word in TINY if "hsf" not in word and not word.startswith("method=")],
    ]
    words += ["train_limit=2", "epochs=1", "pictures.per_category=0"]
    env = {"ANOMALY_VLM_CACHE": str(tmp_path / "cache")}
    assert server([*words, "output_dir=whole"], tmp_path, env=env).status == 0
    entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert entries
    draw = random.Random(SEED)
    for number, content in enumerate((b"", b"\xff" * 9, None, b"[" * 20_000)):
        for path in [*entries, *(tmp_path / "cache").rglob("about.json")]:
            if path.is_file():
                path.write_bytes(flipped(path.read_bytes(), draw) if content is None else content)
        outcome = server([*words, f"output_dir=run{number}"], tmp_path, env=env)
        assert outcome.status in (0, 2), outcome.err
        assert outcome.line if outcome.status else results(tmp_path / f"run{number}") == results(tmp_path / "whole")
        check_told(server, ["cache"], tmp_path, "cache")
        counted("broken file of a run, a cache or an index")


def test_broken_indexes(server: Server, tmp_path: Path, counted: Callable[..., None]) -> None:
    for name in ("good.png", "bad.png", "mask.png"):
        pixels = np.full((16, 16), 255 if name == "mask.png" else 90, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    row = {"img_path": "good.png", "mask_path": "", "cls_name": "gear", "specie_name": "good", "anomaly": 0}
    bad = {"img_path": "bad.png", "mask_path": "mask.png", "cls_name": "gear", "specie_name": "dent", "anomaly": 1}
    rows = [
        [row, bad, {**bad, "anomaly": "1"}],
        [row, bad, {**bad, "img_path": "../../bad.png"}],
        [row, bad, {**bad, "img_path": "bad.png\0"}],
        [row, bad, {**bad, "mask_path": "none.png"}],
        [row, bad, {**bad, "cls_name": None}],
        [row, {**bad, "anomaly": 10**400}],
        [row],
        [[row]],
    ]
    contents = [json.dumps({"test": {"gear": content}}).encode() for content in rows]
    winclip = ["method=winclip", *TINY[1:6], "callbacks.progress=none", "pictures.per_category=0"]
    for content in [*JUNK.values(), *contents]:
        (tmp_path / "meta.json").write_bytes(content)
        words = ["evaluate", *winclip, "dataset=meta_json", f"dataset.test.root={tmp_path}", "output_dir=run"]
        check_told(server, words, tmp_path, str(content[:200]))
        counted("broken file of a run, a cache or an index")
