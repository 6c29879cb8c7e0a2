"""Which test images a method has met before: in its training, or where its epoch was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomaly_vlm.data import AnomalyData
from anomaly_vlm.data.overlap import content_keys, shared_images
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.reporting.console import say

if TYPE_CHECKING:
    from anomaly_vlm.runs.build import Run


def note_training_images(data: AnomalyData, method: AnomalyMethod, facts: dict[str, Any], *, with_train: bool) -> None:
    """Records which images are learned from, for later evaluations, and says where the test set has some of them."""
    if with_train and data.train_on == "dataset":
        keys = content_keys(data.samples("train"))
        method.run_record["train_images"] = _stored(keys)
        say_shared_images(data, facts, trained_on=keys)


def note_selection_images(run: Run) -> None:
    """Records which images the epoch is chosen by, for later evaluations, and says where test or training set has some.

    Where it is chosen on the test set itself, tables say that anyway.
    """
    data, side = run.data, run.data.selection_side
    if side is None:
        return
    keys = content_keys(data.samples(side))
    run.method.run_record["selection_images"] = _stored(keys)
    if side == "test":
        return
    say_shared_images(data, run.facts, selected_on=keys)
    trained_on = run.method.run_record.get("train_images")
    known = set() if trained_on is None else set(trained_on.tolist())
    shared = [sample.path for sample, key in zip(data.samples(side), keys, strict=True) if key in known]
    if shared:
        run.facts["validation_images_trained_on"] = len(shared)
        say(
            f"warning: {len(shared):,} of {len(keys):,} validation images are trained on, such as '{shared[0]}': the epoch"
            " is chosen by how well it knows them"
        )


def say_shared_images(
    data: AnomalyData, facts: dict[str, Any], *, trained_on: Sequence[int] = (), selected_on: Sequence[int] = ()
) -> None:
    """Says and records how many test images are among those that were trained on, and that the epoch was chosen by.

    Args:
        data: With the test set.
        facts: Of the run, which get the two numbers.
        trained_on: Content of the training images, see `data.overlap`.
        selected_on: Content of the images that the epoch was chosen by.
    """
    samples = data.samples("test")
    if shared := shared_images(samples, trained_on) if trained_on else []:
        facts["test_images_trained_on"] = len(shared)
        say(
            f"warning: {len(shared):,} of {len(samples):,} test images were trained on, such as '{shared[0]}':"
            " the results do not say how unseen images are told apart"
        )
    if shared := shared_images(samples, selected_on) if selected_on else []:
        facts["test_images_selected_on"] = len(shared)
        say(
            f"warning: the epoch was chosen by {len(shared):,} of {len(samples):,} test images, such as '{shared[0]}':"
            " the results do not say how well unseen images are told apart"
        )


def _stored(keys: Sequence[int]) -> Tensor:
    return torch.tensor(sorted(set(keys)), dtype=torch.int64)
