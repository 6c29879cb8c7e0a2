"""Resuming a Lightning run gives the batches that the unbroken run would have seen, from every step on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from anomaly_vlm.data import AnomalyDataModule, Batch
from anomaly_vlm.errors import UserError
from tests.data.made import PIXELS, Given, squares

pytestmark = pytest.mark.filterwarnings(
    "ignore:Total length of `list` across ranks is zero.*",  # no validation loop
    "ignore:Be aware that when using `ckpt_path`.*",  # the callbacks that saved are not needed again
    "ignore:Checkpoint directory .* exists and is not empty.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
)
EPOCHS, BATCHES = 3, 4


class Recorder(L.LightningModule):
    """One weight, whose value depends on the order of all batches so far."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, *batch.index.tolist()))
        return (self.weight * batch.image.mean() - batch.label.float().mean()).square().sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(workers: int = 0, *, validating: bool = False, **options: Any) -> AnomalyDataModule:
    made = AnomalyDataModule(
        **{"train": Given(squares(7)), "val": Given(squares(3)), "batch_size": 2, "num_workers": workers, **options}
    )
    made.preprocess = PIXELS
    made.selection_side = "val" if validating else None
    return made


def fit(module: AnomalyDataModule, *, ckpt: Path | None = None, savers: tuple = (), **options: Any) -> Recorder:
    recorder = Recorder()
    trainer = L.Trainer(
        **{"max_epochs": EPOCHS, **options}, accelerator="cpu", logger=False, callbacks=list(savers),
        enable_checkpointing=bool(savers), enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=module, ckpt_path=None if ckpt is None else str(ckpt), weights_only=True)
    return recorder


def saver(folder: Path, **when: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, enable_version_counter=False, **when)


@pytest.mark.parametrize("validating", [False, True])
def test_from_every_step(tmp_path: Path, validating: bool) -> None:
    whole = fit(data(validating=validating), savers=(saver(tmp_path, every_n_train_steps=1),))
    assert len(whole.seen) == EPOCHS * BATCHES
    assert [sorted(sum((step[1:] for step in whole.seen[e * BATCHES :][:BATCHES]), ())) for e in range(EPOCHS)] == [
        list(range(7))
    ] * EPOCHS
    for step in range(1, EPOCHS * BATCHES):
        part = fit(data(validating=validating), ckpt=tmp_path / f"step={step}.ckpt")
        assert part.seen == whole.seen[step:], f"from step {step}"
        assert torch.equal(part.weight, whole.weight)


def test_from_the_end_of_an_epoch_and_with_workers(tmp_path: Path) -> None:
    whole = fit(
        data(), savers=(saver(tmp_path / "end", every_n_epochs=1), saver(tmp_path / "step", every_n_train_steps=1))
    )
    places = [
        tmp_path / f"end/step={BATCHES}.ckpt",
        *(tmp_path / f"step/step={step}.ckpt" for step in (BATCHES, BATCHES + 1)),
    ]
    for workers in (0, 2):
        for place in places:
            part = fit(data(workers), ckpt=place)
            assert part.seen == whole.seen[-len(part.seen) :]
            assert len(part.seen) == EPOCHS * BATCHES - int(place.stem.partition("=")[2])
            assert torch.equal(part.weight, whole.weight)


def test_resumed_runs_can_be_resumed(tmp_path: Path) -> None:
    whole = fit(data(), savers=(saver(tmp_path, every_n_train_steps=1),))
    for step in range(4, EPOCHS * BATCHES + 1):
        (tmp_path / f"step={step}.ckpt").unlink()
    start = 3
    for step in (5, 8, 10):  # killed again and again, within epochs and between them
        place = tmp_path / f"step={start}.ckpt"
        fit(data(), ckpt=place, savers=(saver(tmp_path, every_n_train_steps=1),), max_steps=step, max_epochs=-1)
        part = fit(data(), ckpt=tmp_path / f"step={step}.ckpt")
        assert part.seen == whole.seen[step:]
        assert torch.equal(part.weight, whole.weight)
        start = step


def test_shortened_epochs(tmp_path: Path) -> None:
    whole = fit(data(), savers=(saver(tmp_path, every_n_train_steps=1),), limit_train_batches=3)
    assert len(whole.seen) == 9
    for step in (2, 3, 4):
        part = fit(data(), ckpt=tmp_path / f"step={step}.ckpt", limit_train_batches=3)
        assert part.seen == whole.seen[step:]


def test_loaders_may_be_reloaded_every_epoch() -> None:
    assert fit(data(), reload_dataloaders_every_n_epochs=1).seen == fit(data()).seen


def test_other_data_or_batches_cannot_be_resumed(tmp_path: Path) -> None:
    fit(data(), savers=(saver(tmp_path, every_n_train_steps=1),), max_steps=2)
    for other, message in (
        ({"batch_size": 3}, "batch_size=2, this run has batch_size=3"),
        ({"seed": 5}, "seed=0, this run has seed=5"),
        ({"train": Given(squares(8))}, "images=7, this run has images=8"),
    ):
        with pytest.raises(
            UserError, match=f"the checkpoint was made with {message}: resume with the same data and options"
        ):
            fit(data(**other), ckpt=tmp_path / "step=2.ckpt")
