"""Whatever is typed or read: a result, or one line that says what is wrong.

The tests that are marked `faults` try many changes of every key of every method, of checkpoints, and of the files of data
sets; the others are a few of each kind.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from anomaly_vlm.cli import dispatch
from anomaly_vlm.data.readers.coco import read_coco
from anomaly_vlm.data.readers.meta_json import read_meta_json
from anomaly_vlm.errors import UserError
from anomaly_vlm.options import option_defaults, option_names
from anomaly_vlm.runs.build import build
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.configs import checked, from_checkpoint
from anomaly_vlm.runs.groups import choices
from anomaly_vlm.runs.instantiate import method_class
from tests.faults.conftest import TINY, TRAIN
from tests.support.fuzz import ODD, ODD_IN_FILES, ODD_WORDS, changes, places

FEW = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# Of the harness; what it finds is told as it is, as shrinking it takes as long as all the rest.
EXAMPLES = int(os.environ.get("ANOMALY_VLM_FUZZ", "3"))  # words for each of a method's own keys
MANY = settings(FEW, max_examples=12 * EXAMPLES, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
METHODS = [name for name in choices("method") if name not in ("dinov2", "sam")]  # these need downloaded weights


def told(call: Callable[[], Any]) -> None:
    """Makes a call that may end in one line, and in no other error."""
    try:
        call()
    except UserError as error:
        assert str(error) and "\n" not in str(error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny run."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert dispatch(*TRAIN, "train_limit=2", "eval_limit=2", "epochs=1", f"output_dir={folder / 'run'}") == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


def base_overrides(method: str) -> list[str]:
    """A small run of a method on random weights."""
    backbone = "tiny_convnext" if method == "vl4ad" else "tiny_random"
    data = ["dataset=procedural_road"] if method == "vl4ad" else ["dataset.test.size=32"]
    shots = ["shots=1"] if method in ("promptad", "finegrainedad", "anomalydino", "subspacead") else []
    return [f"method={method}", f"backbone={backbone}", "trainer=cpu", "cache.tokens=off", *data, *shots]


def shared_keys(method: str) -> list[str]:
    """The keys of a method's composed configuration that are not its constructor's, such as `epochs`."""
    content = OmegaConf.to_container(compose(base_overrides(method)))
    found = [".".join(map(str, place)) for place in places(content) if all(isinstance(key, str) for key in place)]
    return [key for key in found if not key.startswith(("choices", "output_dir", "trainer", "method."))]


def own_keys(method: str) -> list[str]:
    """The options of a method's constructor as keys, with the fields of those that are groups: `method.hsf.k`."""
    chosen = method_class(compose(base_overrides(method)).method)
    defaults, found = option_defaults(chosen), ["method._target_"]
    for name in option_names(chosen):
        group = defaults.get(name)
        fields = dataclasses.fields(group) if dataclasses.is_dataclass(group) else ()
        found += [f"method.{name}", *(f"method.{name}.{field.name}" for field in fields)]
    return found


def words_for(method: str, key: str, count: int) -> list[str]:
    """Some odd values of a key, others for each key, the same in each run."""
    chosen = random.Random(f"{method} {key}").sample(ODD_WORDS, min(count, len(ODD_WORDS)))
    return [f"{'++' if key.startswith('method.') else ''}{key}={value}" for value in chosen]


def try_word(method: str, word: str, *, whole: bool) -> None:
    """Composes a run with one odd word; builds its method too where `whole`."""
    cfg = checked(compose([*base_overrides(method), word]))
    if whole:
        build(cfg, sides=("test",))


@FEW
@given(data=st.data())
def test_odd_words_compose_or_are_rejected(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(METHODS))
    key = data.draw(st.sampled_from([*own_keys(method), *shared_keys(method)]))
    word = f"{key}={data.draw(st.sampled_from(ODD_WORDS))}"
    told(lambda: try_word(method, word, whole=False))


@pytest.mark.faults
@pytest.mark.parametrize("method", METHODS)
def test_odd_words_of_every_method(method: str, counted: Callable[..., None]) -> None:
    """Every key is tried; a method's own ones are built with several words, the others composed, and built in turns."""
    words = [(word, True) for key in own_keys(method) for word in words_for(method, key, EXAMPLES)]
    for i, key in enumerate(shared_keys(method), METHODS.index(method)):
        words += [(word, i % 3 == 0) for word in words_for(method, key, 1)]
    said = {}
    for word, whole in words:
        try:
            told(lambda word=word, whole=whole: try_word(method, word, whole=whole))
        except Exception as error:  # whatever comes out in place of one line: all of them are told together
            said[word] = f"{type(error).__name__}: {error}"
    assert not said
    counted("odd words for every key of every method, without the command line", len(words))


def written(content: dict[str, Any], path: Path) -> Path:
    torch.save(content, path)
    return path


def kept(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, without Lightning's parts."""
    content = torch.load(path, weights_only=True)
    return {name: content[name] for name in ("anomaly_vlm", "state_dict")}


@FEW
@given(data=st.data())
def test_changed_checkpoints_are_read_or_rejected(data: st.DataObject, trained: Path) -> None:
    content = data.draw(changes(kept(trained), ODD_IN_FILES))

    def read() -> None:
        checkpoint = Checkpoint.read(str(written(content, trained.with_name("changed.ckpt"))))
        from_checkpoint(checkpoint.config, ["trainer=cpu"], "evaluate", has_memory=False)

    told(read)


@pytest.mark.faults
@MANY
@given(data=st.data())
def test_changed_checkpoints_are_evaluated_or_rejected(data: st.DataObject, trained: Path) -> None:
    """Some changes do not matter to an evaluation, so that these are not counted among the broken ones."""
    path = written(data.draw(changes(kept(trained), ODD_IN_FILES)), trained.with_name("changed.ckpt"))
    words = ["eval_limit=2", "pictures.per_category=0", "callbacks.progress=none", "trainer=cpu"]
    told(lambda: dispatch("evaluate", f"ckpt={path}", *words, f"output_dir={trained.parent / 'evaluated'}"))


@FEW
@given(data=st.data())
def test_flipped_checkpoints_are_rejected(data: st.DataObject, trained: Path) -> None:
    """Those that the suite writes carry a digest: none with a flipped byte, or without its end, is read."""
    content = bytearray(trained.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = trained.with_name("flipped.ckpt")
    path.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), place]))]))
    with pytest.raises(UserError, match="flipped"):
        Checkpoint.read(str(path))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures and a mask, for indexes to name."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("good.png", "bad.png", "mask.png"):
        Image.new("L", (8, 8), 255 if name == "mask.png" else 90).save(root / name)
    return root


INDEX = {
    "test": {
        "gear": [
            {"img_path": "good.png", "mask_path": "", "cls_name": "gear", "specie_name": "good", "anomaly": 0},
            {"img_path": "bad.png", "mask_path": "mask.png", "cls_name": "gear", "specie_name": "dent", "anomaly": 1},
        ]
    }
}
COCO = {
    "images": [{"id": 1, "file_name": "bad.png", "width": 8, "height": 8}],
    "categories": [{"id": 1, "name": "dent"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "bbox": [0, 0, 4, 4]},
        {"image_id": 1, "category_id": 1, "segmentation": {"size": [8, 8], "counts": [10, 20, 34]}},
    ],
}
JSON_ODD = [*ODD, 2**63, [[]], [[[[]]]], "../../x", "/", "good.png\0"]


@FEW
@given(data=st.data())
@pytest.mark.parametrize("kind", ["meta.json", "coco.json"])
def test_changed_indexes_are_read_or_rejected(kind: str, data: st.DataObject, tree: Path) -> None:
    content = data.draw(changes(INDEX if kind == "meta.json" else COCO, JSON_ODD))
    (tree / kind).write_text(json.dumps(content), encoding="utf-8", errors="surrogateescape")
    if kind == "meta.json":
        told(lambda: read_meta_json(tree))
    else:
        told(lambda: read_coco(tree, annotations=kind, category="gear"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "\ufeff[", "NaN", "1" * 5000, '"\\ud800"'])
@pytest.mark.parametrize("name", ["meta.json", "coco.json"])
def test_deep_and_broken_json_is_rejected(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        read_meta_json(tmp_path) if name == "meta.json" else read_coco(tmp_path, annotations=name, category="gear")


def test_weights_with_nan_are_rejected(trained: Path, tmp_path: Path) -> None:
    content = kept(trained)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name].view(-1)[0] = float("nan")
    path = written(content, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match=f"{name} holds 1 values that are no finite numbers"):
        dispatch("evaluate", f"ckpt={path}", *TINY[-1:], f"output_dir={tmp_path / 'run'}")
