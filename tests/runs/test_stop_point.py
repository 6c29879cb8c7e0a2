"""States that are saved around a validation: what resumes from them loses no step and leaves no validation out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from anomaly_vlm.runs.stop_point import StopPoint


class Line(L.LightningModule):
    """A line through points; raises in the batch of a validation that it is told."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.fill_(0.1)
        self.stop_at, self.validated = stop_at, []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        place = (self.global_step, batch_idx)
        if place == self.stop_at:
            raise KeyError("stopped")
        self.validated.append(place)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fitted(folder: Path, line: Line, *, resume: bool = False, **options: Any) -> Line:
    points = torch.ones(4, 2)  # all alike, as this loader would begin anew in the middle of an epoch
    loader = DataLoader(TensorDataset(points), batch_size=1)
    last = folder / "last.ckpt"
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[StopPoint(last)], **options,
    )  # fmt: skip
    with torch.random.fork_rng():
        trainer.fit(line, loader, loader, ckpt_path=last if resume else None, weights_only=True)
    return line


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(("options", "stop_at"), [({}, (4, 0)), ({}, (12, 2)), ({"val_check_interval": 2}, (6, 1))])
def test_a_stopped_validation_is_done_again(options: dict[str, Any], stop_at: tuple[int, int], tmp_path: Path) -> None:
    whole = fitted(tmp_path, Line(), **options)
    with pytest.raises(KeyError, match="stopped"):
        fitted(tmp_path, Line(stop_at), **options)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == stop_at[0]
    again = fitted(tmp_path, Line(), resume=True, **options)
    assert torch.equal(again.layer.weight, whole.layer.weight)
    assert again.validated == whole.validated[whole.validated.index((stop_at[0], 0)) :]
