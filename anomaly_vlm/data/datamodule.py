"""`AnomalyDataModule`: the data of a run in the form that any Lightning trainer takes."""

from __future__ import annotations

import lightning as L

from anomaly_vlm.data.anomaly_data import AnomalyData


class AnomalyDataModule(AnomalyData, L.LightningDataModule):
    """`AnomalyData` whose loaders a Lightning trainer asks for; the trainer says which process and which step it is."""
