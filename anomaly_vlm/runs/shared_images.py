"""Which test images a method has met before: in its training, or where its epoch was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anomaly_vlm.data import AnomalyData
from anomaly_vlm.data.overlap import Content, contents, from_record, shared_images, to_tensor
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.reporting.console import say

if TYPE_CHECKING:
    from anomaly_vlm.runs.build import Run


def note_training_images(data: AnomalyData, method: AnomalyMethod, facts: dict[str, Any], *, with_train: bool) -> None:
    """Records which images are learned from, for later evaluations, and says where the test set has some of them."""
    if with_train and data.train_on == "dataset":
        known = contents(data.samples("train"))
        method.run_record["train_images"] = to_tensor(known)
        say_shared_images(data, facts, trained_on=known)


def note_selection_images(run: Run) -> None:
    """Records which images the epoch is chosen by, for later evaluations, and says where test or training set has some.

    Where it is chosen on the test set itself, tables say that anyway.
    """
    data, side = run.data, run.data.selection_side
    if side is None:
        return
    samples = data.samples(side)
    known = contents(samples)
    run.method.run_record["selection_images"] = to_tensor(known)
    if side == "test":
        return
    say_shared_images(data, run.facts, selected_on=known)
    trained_on = from_record(run.method.run_record.get("train_images"))
    if shared := shared_images(samples, trained_on) if trained_on else []:
        run.facts["validation_images_trained_on"] = len(shared)
        say(
            f"warning: {len(shared):,} of {len(samples):,} validation images are trained on, such as '{shared[0]}': the"
            " epoch is chosen by how well it knows them"
        )


def say_shared_images(
    data: AnomalyData, facts: dict[str, Any], *, trained_on: Sequence[Content] = (), selected_on: Sequence[Content] = ()
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
