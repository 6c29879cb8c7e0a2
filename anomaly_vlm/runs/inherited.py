"""What a checkpoint's configuration hands on to an evaluation, and what stays with the training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.compose import compose

# Keys of a trial, a study or a machine: null in an evaluation.
TRIAL_KEYS = ("eval_limit", "train_limit", "seeds", "compile")
TRAINER_KEYS = (
    "fast_dev_run", "overfit_batches", "limit_train_batches", "limit_val_batches", "limit_test_batches",
    "limit_predict_batches", "max_steps", "max_time", "min_epochs", "min_steps",
)  # fmt: skip
SUBSET_KEYS = ("categories", "test_count")  # which part of a test set is used


def drop_limits_of_training(cfg: DictConfig, overrides: Sequence[str], *, keep_subset: bool) -> None:
    """Removes from a checkpoint's configuration whatever limited its training run, unless the user sets it again.

    So a checkpoint of a quick trial on 24 images is evaluated on the whole test set.

    Args:
        cfg: The checkpoint's configuration with the overrides on top; it is changed.
        overrides: Of the user.
        keep_subset: Whether the part of the test set that was used stays: where the checkpoint's memory holds references of
            its categories, or where nothing reads that set.
    """
    given = {word.lstrip("+~").partition("=")[0] for word in overrides}
    with open_dict(cfg):
        for key in TRIAL_KEYS:
            if key not in given:
                cfg[key] = None
        for key in (*TRAINER_KEYS, "profiler"):
            if f"trainer.{key}" not in given:
                cfg.trainer.pop(key, None)
        test = cfg.dataset.get("test")
        chosen_anew = "dataset" in given or "source@dataset.test" in given
        if isinstance(test, DictConfig) and not chosen_anew and not keep_subset:
            _restore_subsets(test, _as_shipped(cfg), "dataset.test", given)


def _as_shipped(cfg: DictConfig) -> DictConfig | None:
    """The test side of the same choices without any override; None where they cannot be composed here."""
    made = dict(cfg.get("choices") or {})
    words = [f"{group}={name}" for group, name in made.items() if group in ("method", "backbone", "dataset")]
    words += [f"{group}={name}" for group, name in made.items() if str(group).startswith("source@")]
    try:
        side = OmegaConf.select(compose(words), "dataset.test")
    except UserError:
        return None
    return side if isinstance(side, DictConfig) else None


def _restore_subsets(node: DictConfig, shipped: Any, place: str, given: set[str]) -> None:
    for key in list(node):
        name = f"{place}.{key}"
        other = shipped.get(key) if isinstance(shipped, DictConfig) else None
        if isinstance(node._get_node(key), DictConfig):
            _restore_subsets(node[key], other, name, given)
        elif key in SUBSET_KEYS and name not in given and (other is not None or key == "categories"):
            node[key] = other
