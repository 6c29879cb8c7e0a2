"""Configurations from files: nothing that is not allowed is ever looked up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from anomaly_vlm import load_checkpoint, load_method
from anomaly_vlm.cli import main
from anomaly_vlm.cli.inspect import _of_machine
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.linear_heads import LinearHeads
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.instantiate import instantiate
from anomaly_vlm.runs.trust import check_targets, foreign_config, read_config, shipped_targets

EVIL = {"_target_": "os.mkdir", "path": "ran"}
HIDDEN: dict[str, Any] = {
    "plain": EVIL,
    "in a list": [EVIL],
    "in a tuple": (EVIL,),
    "deep in tuples": ({"a": ((EVIL,),)},),
    "decoded": "${oc.decode:'{_target_: os.mkdir, path: ran}'}",
    "created": "${oc.create:{_target_: os.mkdir, path: ran}}",
    "decoded inside a text": "x${oc.decode:'{_target_: os.mkdir, path: ran}'}",
    "from the environment": "${oc.env:HOME}",
    "nested interpolation": "${oc.decode:${name}}",
    "in a default": "${oc.select:nothing,${oc.env:HOME}}",
    "deprecated": "${oc.deprecated:name}",
    "assembled target": {"_target_": "${first}.${second}", "path": "ran"},
    "attribute of a library": {"_target_": "torch.optim.adam.os.system", "command": "touch ran"},
    "positional": {"_target_": "builtins.eval", "_args_": ["__import__('os').mkdir('ran')"]},
    "hydra's own": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "partial": {"_target_": "os.mkdir", "_partial_": True, "path": "ran"},
    "an object": torch.zeros(1),
}


@pytest.mark.parametrize("place", ["optimizer", "method", "dataset", "new"])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_checkpoint_cannot_run_code(name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two holes of the past (a tuple, a text that becomes a node when it is resolved), and others of their kind."""
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.to_container(compose(["method=linear_heads", "backbone=tiny_random"]), resolve=False)
    assert isinstance(config, dict)
    config.update(first="os", second="mkdir")
    config[place] = HIDDEN[name] if place == "new" else {**(config[place] or {}), "extra": HIDDEN[name]}
    with pytest.raises(UserError) as told:
        foreign_config(config, source="checkpoint 'x'")
    assert "\n" not in str(told.value) and not (tmp_path / "ran").exists()


def test_the_command_line_refuses_it_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    config = OmegaConf.to_container(compose(["method=linear_heads", "backbone=tiny_random"]), resolve=False)
    assert isinstance(config, dict)
    config["augment"] = {**config["augment"], "operations": (EVIL,)}
    record = {"config": config, "fingerprint": "0", "trained_on": "nothing"}
    torch.save({"anomaly_vlm": record, "state_dict": {}}, tmp_path / "x.ckpt")
    assert main(["evaluate", f"ckpt={tmp_path / 'x.ckpt'}"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "asks to run 'os.mkdir'" in err


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]\n",
        "method: [",
        "- 1\n",
        "method: !!python/object/apply:os.mkdir [ran]\n",
        "a: ${b}\nb: ${a}\n",
        "a: " + "[" * 200 + "]" * 200,
        "[" * 20_000,
        "optimizer: {_target_: os.mkdir}\n",
        "\x00",
        "seed: ${missing.key}\n",
        "x: " + "y" * 1_100_000,
    ],
)
def test_a_runs_folder_cannot_either(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as told:
        read_config(tmp_path / "config.yaml")
    assert "\n" not in str(told.value)


def test_instantiating_checks_as_well() -> None:
    """Whatever path a node came by."""
    with pytest.raises(UserError, match=r"asks to run 'os.mkdir'.*trust=\[os\]"):
        instantiate({"_target_": "collections.OrderedDict", "a": EVIL}, trusted=["collections"])
    assert instantiate({"_target_": "collections.OrderedDict"}, trusted=["collections"]) == {}
    assert "anomaly_vlm.backbone.load_backbone" in shipped_targets()


def test_own_packages_are_trusted_by_name_alone() -> None:
    node = {"_target_": "mypackage.heads.Head"}
    check_targets(node, source="x", trusted=["mypackage"])
    for target in ("mypackages.heads.Head", "my.package.Head", "mypackage"):
        with pytest.raises(UserError):
            check_targets({"_target_": target}, source="x", trusted=["mypackage"])
    config = OmegaConf.to_container(compose(["method=adaclip", "trust=[os]"]), resolve=False)
    assert isinstance(config, dict)
    assert foreign_config(config, source="x").trust == []  # a file never says whom to trust
    profilers = [f"lightning.pytorch.profilers.{name}Profiler" for name in ("Advanced", "PyTorch", "PassThrough")]
    for library in ("lightning.pytorch.callbacks.EarlyStopping", "torch.optim.SGD", *profilers):
        check_targets({"_target_": library}, source="x")


def test_callbacks_of_a_training_are_not_asked_of_its_checkpoint(tmp_path: Path) -> None:
    """A user's own logger or callback trained along; an evaluation builds neither, whatever they are."""
    config = OmegaConf.to_container(compose(["method=linear_heads", "backbone=tiny_random"]), resolve=False)
    assert isinstance(config, dict)
    config["callbacks"]["extra"] = [{"_target_": "mine.Callback"}, EVIL]
    config["logger"] = {"mine": {"_target_": "mine.Logger"}}
    record = {"config": config, "fingerprint": "0", "trained_on": "nothing"}
    torch.save({"anomaly_vlm": record, "state_dict": {}}, tmp_path / "x.ckpt")
    read = Checkpoint.read(str(tmp_path / "x.ckpt")).config
    assert (read.callbacks.progress, list(read.callbacks.extra), dict(read.logger)) == ("auto", [], {})


class OwnHeads(LinearHeads):
    """A method of a package that the suite does not know."""


@pytest.fixture(scope="module")
def own_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    method = load_method("linear_heads", "tiny_random", overrides=["image_size=32"])
    record = {**method.run_record, "trained_on": "nothing"}
    record["config"]["method"]["_target_"] = f"{__name__}.OwnHeads"
    path = tmp_path_factory.mktemp("own") / "own.ckpt"
    torch.save({"anomaly_vlm": record, "state_dict": method.state_dict()}, path)
    return path


def test_python_trusts_what_it_is_given(own_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"asks to run 'tests\..*trust=\[tests\]"):
        load_checkpoint(own_checkpoint)
    assert type(load_checkpoint(own_checkpoint, trusted=["tests"])) is OwnHeads


@pytest.mark.parametrize("command", ["watch", "export", "serve"])
def test_a_command_that_refuses_takes_the_advice(
    command: str,
    own_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"watch": [f"images={tmp_path}", "looks=1", "every=0.01"], "export": [], "serve": ["port=0"]}[command]
    if command == "serve":
        pytest.importorskip("fastapi")
        monkeypatch.setattr(pytest.importorskip("uvicorn").Server, "run", lambda *args, **kwargs: None)
    taken = []
    monkeypatch.setattr(
        "anomaly_vlm.runs.export.export",
        lambda method, path, **options: (
            taken.append(type(method)) or SimpleNamespace(path=path, difference=0, images=1)
        ),
    )
    assert main([command, f"ckpt={own_checkpoint}", *words]) == 2
    assert "trust=[tests]" in capfd.readouterr().err
    assert main([command, f"ckpt={own_checkpoint}", "trust=[tests]", *words]) == 0
    assert taken == ([OwnHeads] if command == "export" else [])


def test_the_second_half_of_inspect_trusts_too() -> None:
    assert _of_machine(["trust=[tests]", "shots=3", "trainer=cpu"]) == ["trust=[tests]", "trainer=cpu"]
