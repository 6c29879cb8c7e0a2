"""The suite's own checkpoints: reading them, and putting their weights into a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import anomaly_vlm
from anomaly_vlm.data.overlap import Content, from_record
from anomaly_vlm.data.references import MemoryImages, place_below
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.published import load_published
from anomaly_vlm.methods.base.verdict import known_category
from anomaly_vlm.methods.shared.category_memory import of_categories
from anomaly_vlm.metrics.thresholds import Threshold
from anomaly_vlm.runs.config_types import check_types
from anomaly_vlm.runs.instantiate import method_class
from anomaly_vlm.runs.migrate import migrated
from anomaly_vlm.runs.run_names import unnamed
from anomaly_vlm.runs.trust import foreign_config

PUBLISHED = "published:"
SHIPPED = "package:"  # what the suite trained itself and ships beside its backbone
FOLDER = Path(anomaly_vlm.__file__).parent / "nano" / "checkpoints"


def shipped() -> list[str]:
    """Names of the checkpoints that the suite ships."""
    return sorted(path.stem for path in FOLDER.glob("*.ckpt"))


def shipped_file(name: str) -> Path:
    """The file of a shipped checkpoint.

    Raises:
        UserError: There is none of this name; the message lists those that there are.
    """
    if name not in shipped():
        raise unknown_choice("shipped checkpoint", name, shipped())
    return FOLDER / f"{name}.ckpt"


def without_training_parts(config: Any) -> Any:
    """A stored configuration without the loggers and callbacks of its training, and without its name in dashboards.

    So a user's own ones are not asked for when a checkpoint is evaluated; group and tags stay.
    """
    if not isinstance(config, dict):
        return config
    callbacks = config.get("callbacks")
    progress = callbacks.get("progress", "auto") if isinstance(callbacks, dict) else "auto"
    return {
        **config,
        "callbacks": {"progress": progress, "extra": []},
        "logger": {},
        "tracking": unnamed(config.get("tracking")),
    }


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(entry) is kind for entry in value)


def _is_whole_numbers(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.int64:
        return False
    return value.dim() == 1 or (value.dim() == 2 and value.shape[1] == 2)


RECORD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "version": (lambda value: isinstance(value, str), "a text"),
    "fingerprint": (lambda value: isinstance(value, str), "a text"),
    "trained_on": (lambda value: isinstance(value, str), "a text"),
    "references": (_is_list_of(str), "a list of paths"),
    "reference_contents": (lambda value: _is_whole_numbers(value) or _is_list_of(int)(value), "whole numbers"),
    "train_images": (_is_whole_numbers, "whole numbers"),
    "selection_images": (_is_whole_numbers, "whole numbers"),
    "thresholds": (
        lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value),
        "thresholds by name",
    ),
    "max_value": (
        lambda value: value is None or (type(value) in (int, float) and value > 0),
        "a number above 0, or null",
    ),
}


def check_record(record: Mapping[str, Any], source: str) -> None:
    """Checks the types of the entries that a checkpoint records about its run, except the configuration.

    Args:
        record: As read from the file.
        source: The file, for messages.

    Raises:
        UserError: One line that names the entry that is missing or of another kind.
    """
    for key, (is_right, expected) in RECORD.items():
        needed = key in ("fingerprint", "trained_on")
        if (key in record or needed) and not is_right(record.get(key)):
            found = f"is {str(record[key])[:60]!r}" if key in record else "is missing"
            raise UserError(f"{source} is damaged: its {key} {found}, expected {expected}: give another file")
    for name, entry in record.get("thresholds", {}).items():
        try:
            Threshold.from_record(entry)
        except UserError as error:
            raise UserError(f"{source}: its threshold of '{name}' is damaged ({error}): fit it again") from error


@dataclass(frozen=True)
class Checkpoint:
    """Where learned weights come from, and what their file says of itself.

    Attributes:
        spec: As the user gave it: `FILE`, or `published:FILE` in the published code's layout.
        record: What a run wrote about itself (`config`, `fingerprint`, `trained_on`, `references`, `version`); empty
            for published files.
        state: Learned tensors by name; empty for published files.
    """

    spec: str
    record: dict[str, Any]
    state: dict[str, Any]

    @property
    def run_folder(self) -> Path | None:
        """Folder of the training that wrote the file; None for a file of another origin."""
        if self.spec.startswith((PUBLISHED, SHIPPED)):
            return None
        return Path(self.spec).absolute().parent.parent

    @classmethod
    def read(cls, spec: str, *, trusted: Sequence[str] = ()) -> Checkpoint:
        """Reads one of the suite's files, or names a published one.

        Args:
            spec: `FILE`, `published:FILE`, or `package:NAME` for one that the suite ships.
            trusted: Packages of the user's own that the configuration in the file may name.

        Raises:
            UserError: The file is missing, damaged, not one of the suite's, or its configuration names foreign code.
        """
        if spec.startswith(PUBLISHED):
            return cls(spec, {}, {})
        path = shipped_file(spec.removeprefix(SHIPPED)) if spec.startswith(SHIPPED) else Path(spec)
        content = read_tensors(path)
        record = content.get("anomaly_vlm") if isinstance(content, dict) else None
        if not isinstance(record, dict) or not isinstance(content.get("state_dict"), dict):
            raise UserError(
                f"'{path}' is no checkpoint of this suite: give a .ckpt that 'train' wrote, or ckpt=published:{path}"
                " method=NAME"
            )
        check_record(record, f"checkpoint '{path}'")
        stored = without_training_parts(migrated(record.get("config")))
        config = foreign_config(stored, source=f"checkpoint '{path}'", trusted=trusted)
        check_types(config, source=f"checkpoint '{path}': ")
        return cls(spec, {**record, "config": OmegaConf.to_container(config)}, content["state_dict"])

    @property
    def published(self) -> bool:
        """Whether the file is in the published code's layout."""
        return self.spec.startswith(PUBLISHED)

    @property
    def config(self) -> DictConfig:
        """The configuration of the run that wrote the file, under today's names."""
        return DictConfig(self.record["config"])

    @property
    def train_images(self) -> list[Content]:
        """Content of the images that it was trained on, see `data.overlap`; empty where it does not say."""
        return from_record(self.record.get("train_images"))

    @property
    def selection_images(self) -> list[Content]:
        """Content of the images that its epoch was chosen by; empty where it does not say."""
        return from_record(self.record.get("selection_images"))

    @property
    def trained_on(self) -> str:
        """What the learned weights were made from, in words."""
        if self.published:
            return f"published weights {Path(self.spec.removeprefix(PUBLISHED)).name}"
        return str(self.record["trained_on"])

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """By category where OK ends; empty where no good parts were learned from."""
        return {name: Threshold.from_record(entry) for name, entry in self.record.get("thresholds", {}).items()}

    @property
    def categories(self) -> list[str]:
        """Categories that the file holds references or thresholds of; empty where it takes any."""
        return sorted({*of_categories(self.state), *self.record.get("thresholds", {})})

    def category(self, asked: str | None) -> str:
        """The category of images of which the user has said this word, or none.

        Raises:
            UserError: The file holds others, or several and none was said.
        """
        return known_category(self.categories, asked)

    def memory_images(self, cfg: DictConfig) -> MemoryImages | None:
        """Reference images that the checkpoint's memory holds; they are removed from the test set.

        None where it has no memory, so that `shots` images of each category are picked now. Published files name none.

        Raises:
            UserError: `shots` is not what the memory was made of.
        """
        if self.published:
            chosen: Any = method_class(cfg.method, trusted=cfg.trust)
            return MemoryImages() if chosen.reference_support == "required" else None
        held, shots = frozenset(self.record.get("references", [])), self.record["config"]["shots"]
        if held and cfg.shots != shots:
            raise UserError(
                f"the checkpoint's memory holds {shots} images of each category, this run says shots={cfg.shots}: leave"
                " shots out, or give a checkpoint without a memory (trained with shots=0)"
            )
        known = from_record(self.record.get("reference_contents"))
        places = (place_below(path, _roots(self.config.get("dataset"))) for path in held)
        return MemoryImages(held, frozenset(known), frozenset(filter(None, places))) if held else None

    def load_into(self, method: AnomalyMethod) -> None:
        """Puts the learned weights into a built method.

        Raises:
            UserError: The file belongs to another method, other options or other backbone weights.
        """
        if self.published:
            load_published(method, self.spec.removeprefix(PUBLISHED))
            return
        stored, now = self.record["config"]["name"], method.run_record["config"]["name"]
        if stored != now:
            raise UserError(
                f"checkpoint '{self.spec}' was made by method={stored}, this run is method={now}: choose method={stored} or"
                " another checkpoint"
            )
        stored, now = self.record["fingerprint"], method.run_record["fingerprint"]
        if stored != now:
            name = self.record["config"]["backbone"].get("name")
            raise UserError(
                f"checkpoint '{self.spec}' was made on other backbone weights ({name}, fingerprint {stored}) than the ones"
                f" loaded ({method.backbone.describe()}, fingerprint {now}): use the same backbone and weights file"
            )
        method.check_learned(self.state, f"checkpoint '{self.spec}'")
        method.load_state_dict(self.state, strict=False)
        method.decision_thresholds = self.thresholds
        method.known_categories = self.categories
        method.max_value = self.record.get("max_value")


def _roots(node: Any) -> list[str]:
    """The folders that the data sets of a configuration lie in."""
    if not isinstance(node, Mapping | DictConfig):
        return []
    below = [root for value in node.values() for root in _roots(value)]
    return [*below, *([node["root"]] if isinstance(node.get("root"), str) else [])]


def load_init(cfg: DictConfig, method: AnomalyMethod) -> None:
    """Puts the weights that `init` names into a method that is about to be trained.

    Raises:
        UserError: The file is missing, damaged, or does not fit.
    """
    if cfg.init:
        Checkpoint.read(cfg.init, trusted=cfg.trust).load_into(method)
