"""What a run says of itself to a logger: Lightning's loggers with the few things more that a dashboard needs.

Every logger gets the same content through the same calls; a logger that has no place for one of them leaves it out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_vlm.names import slug
from anomaly_vlm.reporting.curves import Curves, Histogram

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

MOST_PICTURES = 100  # of one name; wandb shows no more in a panel
MOST_LINES = 30  # categories in one interactive plot of curves
AXIS = {"roc": "false-positive rate", "pr": "recall", "pro": "false-positive rate"}


@dataclass(frozen=True)
class Logged:
    """What a command has found, as it is logged.

    Attributes:
        stage: In front of every name: `test` of a training, `evaluate` or `predict`, with the data's name where the logger's
            run is that of a training.
        means: Values that runs are compared by.
        columns: Of the table.
        rows: Of the table: one a category, or one an image of a prediction.
        curves: By category and level.
        histograms: Of the image scores, by category.
        pictures: Heat maps with their captions, by category.
        plots: Pictures of curves and histograms.
        files: Tables that are kept as they are.
    """

    stage: str
    means: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    curves: Curves = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[tuple[Path, str]]] = field(default_factory=dict)
    plots: Sequence[Path] = ()
    files: Sequence[Path] = ()


class Tracker:
    """Any of Lightning's loggers, such as the one for CSV files: configuration and values.

    Args:
        logger: Made for this run.
    """

    kind = "csv"

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    def start(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Logs the configuration by dotted keys; returns what another command needs to continue in the same run."""
        self.logger.log_hyperparams(dict(config))
        return {}

    def finish(self, logged: Logged) -> None:
        """Logs what was found."""
        self.logger.log_metrics({f"{logged.stage}/{name}": value for name, value in logged.means.items()})

    def close(self, *, failed: bool) -> None:
        """Ends the logger's run."""
        self.logger.finalize("failed" if failed else "success")


class WandbTracker(Tracker):
    """Weights & Biases: tables, interactive curves, histograms and heat maps."""

    kind = "wandb"

    def __init__(self, logger: Logger) -> None:
        super().__init__(logger)
        self.logger._wandb_init.pop("anonymous", None)  # Lightning hands on None, and wandb warns of the word

    def start(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tracker.start`; wandb's own command line has had its say about keys that it sweeps over."""
        run = self.logger.experiment
        run.config.update(dict(config), allow_val_change=True)
        return {"id": run.id, "project": run.project or None, "entity": run.entity or None}

    def finish(self, logged: Logged) -> None:
        """See `Tracker.finish`."""
        import wandb

        super().finish(logged)
        run, stage, log = self.logger.experiment, logged.stage, {}
        if logged.rows:
            log[f"{stage}/table"] = wandb.Table(columns=list(logged.columns), data=[list(row) for row in logged.rows])
        for level, name in dict.fromkeys((level, name) for (_, level), of in logged.curves.items() for name in of):
            lines = {
                category: of[name]
                for (category, one), of in logged.curves.items()
                if one == level and len(of.get(name, ((),))[0])
            }
            if lines:
                kept = list(lines)[:MOST_LINES]
                log[f"{stage}/curves/{level}_{name}"] = wandb.plot.line_series(
                    [lines[key][0].tolist() for key in kept],
                    [lines[key][1].tolist() for key in kept],
                    keys=kept,
                    title=f"{level} {name.upper()}",
                    xname=AXIS[name],
                )
        for category, one in logged.histograms.items():
            for label, counts in (("normal", one.normal), ("anomalous", one.anomalous)):
                if counts.sum():
                    found = wandb.Histogram(np_histogram=(counts.tolist(), one.edges.tolist()))
                    log[f"{stage}/scores/{slug(category)}/{label}"] = found
        for path in logged.plots:
            log[f"{stage}/plots/{path.stem}"] = wandb.Image(str(path))
        for category, pictures in logged.pictures.items():
            shown = [wandb.Image(str(path), caption=caption) for path, caption in pictures[:MOST_PICTURES]]
            name = f"{stage}/heat_maps/{slug(category)}"
            alike = len({image.image.size for image in shown}) == 1  # a panel of several has one size
            log.update({name: shown} if alike else {f"{name}/{i}": image for i, image in enumerate(shown)})
        if log:
            run.log(log)

    def close(self, *, failed: bool) -> None:
        """Ends the run, or the next one of this process (seeds, sweeps) would continue writing into this one."""
        super().close(failed=failed)
        self.logger.experiment.finish(exit_code=1 if failed else 0)


class TensorBoardTracker(Tracker):
    """TensorBoard: values beside the configuration (tab HParams), the table as text, histograms and pictures."""

    kind = "tensorboard"

    def start(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tracker.start`; the values are added at the end."""
        self.config = dict(config)
        return super().start(config)

    def finish(self, logged: Logged) -> None:
        """See `Tracker.finish`."""
        writer, stage = self.logger.experiment, logged.stage
        named = {f"{stage}/{name}": value for name, value in logged.means.items()}
        self.logger.log_hyperparams(self.config, named or None)
        if logged.rows:
            writer.add_text(f"{stage}/table", markdown(logged.columns, logged.rows))
        for category, one in logged.histograms.items():
            for label, counts in (("normal", one.normal), ("anomalous", one.anomalous)):
                if counts.sum():
                    middles = (one.edges[1:] + one.edges[:-1]) / 2
                    writer.add_histogram(
                        f"{stage}/scores/{slug(category)}/{label}", np.repeat(middles, counts), bins=one.edges
                    )
        for path in logged.plots:
            writer.add_image(f"{stage}/plots/{path.stem}", _pixels(path), dataformats="HWC")
        for category, pictures in logged.pictures.items():
            for i, (path, _) in enumerate(pictures[:MOST_PICTURES]):
                writer.add_image(f"{stage}/heat_maps/{slug(category)}/{i}", _pixels(path), dataformats="HWC")


class MLFlowTracker(Tracker):
    """MLflow: values, and all tables and pictures as artifacts."""

    kind = "mlflow"

    def __init__(self, logger: Logger) -> None:
        super().__init__(logger)
        logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # "not found. Creating it."

    def start(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tracker.start`; a parameter cannot change once it is there, so that only new ones are added."""
        known = self.logger.experiment.get_run(self.logger.run_id).data.params
        named = {re.sub(r"[^\w.\-:/ ]", "_", key): value for key, value in config.items()}
        super().start({key: value for key, value in named.items() if key not in known})
        return {"run_id": self.logger.run_id}

    def finish(self, logged: Logged) -> None:
        """See `Tracker.finish`."""
        super().finish(logged)
        client, run, stage = self.logger.experiment, self.logger.run_id, logged.stage
        for path in (*logged.files, *logged.plots):
            client.log_artifact(run, str(path), stage)
        for category, pictures in logged.pictures.items():
            for path, _ in pictures:
                client.log_artifact(run, str(path), f"{stage}/heat_maps/{slug(category)}")


def tracker(logger: Logger) -> Tracker:
    """The tracker that fits a logger; a logger of the user's own gets configuration and values."""
    kinds = {"WandbLogger": WandbTracker, "TensorBoardLogger": TensorBoardTracker, "MLFlowLogger": MLFlowTracker}
    names = [base.__name__ for base in type(logger).__mro__]
    return next((kinds[name] for name in names if name in kinds), Tracker)(logger)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [" | ".join(map(str, columns)), " | ".join("---" for _ in columns)]
    lines += [" | ".join("" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
              for row in rows]  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines)


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
