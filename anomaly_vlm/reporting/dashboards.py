"""Dashboards of a study as code: a wandb workspace and a wandb report, built from objects and without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly_vlm.names import slug

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro", "pixel_ap", "pixel_f1_max")
ROAD_METRICS = ("pixel_ap", "pixel_fpr95", "pixel_auroc", "component_f1")
LONGEST_TITLE = 128  # characters; wandb takes no more


@dataclass(frozen=True)
class Study:
    """Runs that belong together, as a dashboard shows them.

    Attributes:
        title: Of the report and the workspace.
        text: What the study is about, in a sentence or two.
        field: What tells its runs from others: `Group`, or a dotted key of the configuration.
        value: Of that field.
        keys: Dotted keys of the configuration that vary.
        metrics: Names of the values that are compared, the one that matters most first.
        categories: With heat maps.
    """

    title: str
    text: str
    field: str
    value: str
    keys: Sequence[str]
    metrics: Sequence[str] = METRICS
    categories: Sequence[str] = ()


def workspace(study: Study, *, entity: str, project: str) -> Workspace:
    """The view of a project that shows the runs of a study alone: results, training, curves, heat maps."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=panels, is_open=i < 2) for i, (name, panels) in enumerate(_panels(study).items())
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=study.title[:LONGEST_TITLE],
        sections=sections,
        runset_settings=ws.RunsetSettings(
            filters=[_is_of(study)],
            order=[ws.Ordering(ws.Summary(f"test/{study.metrics[0]}"), ascending=False)],
        ),
    )


def report(study: Study, *, entity: str, project: str) -> Report:
    """The report on a study: what it is, all runs side by side, and the means over what is not varied by its keys."""
    import wandb_workspaces.reports.v2 as wr

    order = [wr.OrderBy(wr.SummaryMetric(f"test/{study.metrics[0]}"), ascending=False)]
    every = {
        "filters": [_is_of(study)],
        "order": order,
    }  # without an entity, a set of runs is of the report's own project
    grouped = [f"config.{_flat(key)}" for key in study.keys if key != "seed"]
    blocks: list[Any] = [wr.TableOfContents(), wr.P(study.text)]
    for name, panels in _panels(study).items():
        sets = [wr.Runset(name="runs", **every)]
        if name == "Results" and grouped:
            sets = [wr.Runset(name="means", groupby=grouped, **every), *sets]
        blocks += [wr.H2(name), wr.PanelGrid(runsets=sets, panels=panels)]
    return wr.Report(entity=entity, project=project, title=study.title[:LONGEST_TITLE], blocks=blocks, width="fluid")


def as_json(built: Workspace | Report) -> str:
    """What the library would send to wandb."""
    model = json.loads(built._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(model, indent=1) + "\n"


def _panels(study: Study) -> dict[str, list[Any]]:
    """The panels by section."""
    import wandb_workspaces.reports.v2 as wr

    main = f"test/{study.metrics[0]}"
    results: list[Any] = [
        wr.BarPlot(title=name.replace("_", " "), metrics=[wr.SummaryMetric(f"test/{name}")]) for name in study.metrics
    ]
    results += [
        wr.BarPlot(
            title=f"{study.metrics[0].replace('_', ' ')} by {key}",
            metrics=[wr.SummaryMetric(main)],
            groupby=wr.Config(_flat(key)),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for key in study.keys
    ]
    if study.keys:
        axes = [*(wr.Config(_flat(key)) for key in study.keys), *(wr.SummaryMetric(f"test/{m}") for m in study.metrics)]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
        results += [wr.ParallelCoordinatesPlot(columns=columns), wr.ParameterImportancePlot(with_respect_to=main)]
    results.append(wr.RunComparer(diff_only="split"))
    training = [
        wr.LinePlot(title="loss of an epoch", x="epoch", y=["train/loss_epoch"]),
        wr.LinePlot(title="loss of a step", x="trainer/global_step", y=["train/loss_step"]),
    ]
    curves = [
        wr.MediaBrowser(title="ROC, PR and PRO", media_keys=["test/plots/curves"]),
        wr.MediaBrowser(title="scores", media_keys=["test/plots/histograms"]),
    ]
    maps = [wr.MediaBrowser(title=name, media_keys=[f"test/heat_maps/{slug(name)}"]) for name in study.categories]
    sections = {"Results": results, "Training": training, "Curves": curves, "Heat maps": maps}
    return {name: panels for name, panels in sections.items() if panels}


def _is_of(study: Study) -> Any:
    """The filter for the runs of a study."""
    from wandb_workspaces import expr

    return (expr.Metric("Group") if study.field == "Group" else expr.Config(_flat(study.field))) == study.value


def _flat(key: str) -> str:
    """A key that has dots in it: by itself wandb would take them for nested tables."""
    return f"{key}.value"
