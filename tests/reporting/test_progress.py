"""Progress in piped output: lines all the way, in every epoch, with loss terms and the time left."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from anomaly_vlm.reporting.progress import LogProgress, progress_bar


class Toy(L.LightningModule):
    """Learns nothing of interest in 20 steps an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).pow(2).mean()
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(20, 1))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
def test_lines_in_every_epoch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bar = LogProgress(percent=25, seconds=0.0)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[bar], logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Toy())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    for epoch in (1, 2):
        own = [line for line in lines if line.startswith(f"epoch {epoch}/2 ")]
        assert [line.split()[2] for line in own] == ["1/20", "6/20", "11/20", "16/20", "20/20"]
        assert all("  loss " in line for line in own)
        assert own[-1].endswith("0:00 left")


def test_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bar("none") is None
    assert isinstance(progress_bar("auto"), LogProgress)  # no terminal here
    assert type(progress_bar("rich")).__name__ == "RichProgressBar"
