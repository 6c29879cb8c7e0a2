"""Dashboards as code: what the library would send, and that its own objects read it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.dashboards import Study, as_json, report, workspace
from anomaly_vlm.runs.studies import study_of_experiment

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, at the import of the library

STUDY = Study("depths", "Two depths.", "Group", "adaclip/today", ["method.prompts.depth", "seed"], categories=["gear"])


def test_the_workspace_shows_the_runs_of_the_study_alone() -> None:
    content = json.loads(as_json(workspace(STUDY, entity="team", project="anomaly_vlm")))
    assert (content["entity"], content["project"], content["displayName"]) == ("team", "anomaly_vlm", "depths")
    runs = content["spec"]["section"]["runSets"][0]
    (kept,) = runs["filters"]["filters"]
    assert kept["key"] == {"section": "run", "name": "group"} and kept["value"] == "adaclip/today"
    assert runs["sort"]["keys"][0]["key"] == {"section": "summary", "name": "test/image_auroc"}
    sections = {one["name"]: one for one in content["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Results", "Training", "Curves", "Heat maps"]
    bars = [panel["config"] for panel in sections["Results"]["panels"] if panel["viewType"] == "Bar Chart"]
    assert {bar["groupBy"] for bar in bars if "groupBy" in bar} == {"method.prompts.depth.value", "seed.value"}
    (maps,) = sections["Heat maps"]["panels"]
    assert maps["config"]["mediaKeys"] == ["test/heat_maps/gear"]


def test_the_librarys_own_objects_read_the_workspace_back() -> None:
    import wandb_workspaces.workspaces as ws

    built = workspace(STUDY, entity="team", project="anomaly_vlm")
    again = ws.Workspace._from_model(built._to_model())
    assert [section.name for section in again.sections] == [section.name for section in built.sections]
    assert [type(p) for s in again.sections for p in s.panels] == [type(p) for s in built.sections for p in s.panels]


def test_the_report_has_means_over_the_seeds() -> None:
    content = json.loads(as_json(report(STUDY, entity="team", project="anomaly_vlm")))
    grids = [block["metadata"] for block in content["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 4 and [one["name"] for one in grids[0]["runSets"]] == ["means", "runs"]
    assert grids[0]["runSets"][0]["grouping"] == [{"section": "config", "name": "method.prompts.depth.value"}]
    assert grids[0]["runSets"][1]["grouping"] == []


def test_a_study_of_an_experiment_compares_what_it_sweeps_over() -> None:
    study = study_of_experiment("adaclip/prompts")
    assert study.keys == ["method.prompts.branch", "method.prompts.type"]
    assert (study.field, study.value) == ("choices.experiment", "adaclip/prompts")
    assert study.text.startswith("AdaCLIP's ablation of prompt type and branch")
    assert study_of_experiment("faprompt/losses").keys
    with pytest.raises(UserError, match="is one run, no study"):
        study_of_experiment("adaclip/visa_clinicdb")
    with pytest.raises(UserError, match="unknown study 'adaclip/prompt'"):
        study_of_experiment("adaclip/prompt")


def test_the_command_writes_both(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["dashboard", "study=adaclip/prompts", f"to={tmp_path}"]) == 0
    assert "not uploaded: set WANDB_API_KEY" in capsys.readouterr().out
    for name in ("workspace", "report"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["displayName"] == "adaclip/prompts"


def test_uploading_saves_both(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    saved: list[Any] = []
    for kind in (wr.Report, ws.Workspace):
        monkeypatch.setattr(kind, "save", lambda self, *_: saved.append(type(self).__name__))
        monkeypatch.setattr(kind, "url", property(lambda self: "https://wandb.example"), raising=False)
    words = ["dashboard", "study=adaclip/prompts", f"to={tmp_path}", "upload=true"]
    assert main(words) == 2 and "entity is not given" in capsys.readouterr().err
    assert main([*words, "entity=team"]) == 0
    assert saved == ["Workspace", "Report"] and "https://wandb.example" in capsys.readouterr().out
