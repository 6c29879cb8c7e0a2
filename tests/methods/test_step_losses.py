"""The losses of an epoch's steps: means over the images, some of the steps themselves."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomaly_vlm.methods.base.step_losses import StepLosses
from anomaly_vlm.methods.base.steps import TrainerSteps


def test_means_are_over_images_and_begin_anew() -> None:
    losses = StepLosses()
    losses.add({"dice": torch.tensor(1.0, requires_grad=True)}, 3)
    losses.add({"dice": torch.tensor(5.0), "late": torch.tensor(2.0)}, 1)
    assert losses.means() == {"dice": torch.tensor(2.0), "late": torch.tensor(0.5)}
    assert losses.means() == {}


class Counting(TrainerSteps):
    """Its loss is the number in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.watched: list[tuple[dict[str, float], dict[str, float]]] = []

    def losses(self, batch: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"term": (batch * self.weight / self.weight.detach()).mean()}

    def total_loss(self, values: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return 2 * values["term"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Watch(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, module: Counting, *_: object) -> None:  # type: ignore[override]
        kept = {key: float(value) for key, value in trainer.progress_bar_metrics.items()}
        module.watched.append((kept, {}))

    def on_train_end(self, trainer: L.Trainer, module: Counting) -> None:  # type: ignore[override]
        module.watched.append(({}, {key: float(value) for key, value in trainer.callback_metrics.items()}))


@pytest.mark.filterwarnings("ignore")
def test_the_first_the_last_and_every_nth_step_are_logged_and_the_means_of_the_epoch(tmp_path: Path) -> None:
    module = Counting()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, log_every_n_steps=4, callbacks=[Watch()], enable_progress_bar=False,
        logger=False, enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.arange(1.0, 12.0), batch_size=2))  # 1.5, 3.5, 5.5, 7.5, 9.5 and 11 alone
    *steps, (_, ended) = module.watched
    assert [kept["train/term_step"] for kept, _ in steps] == [1.5, 1.5, 1.5, 7.5, 7.5, 11, 1.5, 3.5, 3.5, 3.5, 3.5, 11]
    mean = pytest.approx(sum(range(1, 12)) / 11)
    assert ended["train/term_epoch"] == ended["train/term"] == mean
    assert ended["train/loss_epoch"] == pytest.approx(2 * sum(range(1, 12)) / 11)
