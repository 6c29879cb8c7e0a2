"""`anomaly-vlm nano`: its options, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from anomaly_vlm.cli import main
from anomaly_vlm.cli.nano import check_same_run
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.compose import compose


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    cfg = compose([], config="nano")
    check_same_run(cfg, tmp_path)
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    check_same_run(compose(["image.steps=9", "threads=1", "every=5"], config="nano"), tmp_path)
    for change, told in (("width=192", "width=128"), ("image.distil=[global]", "image.distil=")):
        with pytest.raises(UserError, match=f"holds a run with {told}"):
            check_same_run(compose([change], config="nano"), tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["image.distil=[patches]"], "unknown image.distil 'patches'"),
        (["image.distil=false"], "image.distil is False"),
        (["width=100"], "width is 100: give a multiple of 32"),
        (["layers=0"], "layers is 0"),
        (["image.dense=false"], "dense"),
    ],
)
def test_wrong_choices_are_rejected(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("anomaly_vlm.nano.train.load_teacher", lambda: None)
    assert main(["nano", f"output_dir={tmp_path / 'run'}", *words]) == 2
    assert told in capsys.readouterr().err
