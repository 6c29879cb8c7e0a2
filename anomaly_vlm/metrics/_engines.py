"""The engine that options ask for."""

from __future__ import annotations

from anomaly_vlm.metrics._engine_binned import BinnedEngine
from anomaly_vlm.metrics._engine_exact import ExactEngine
from anomaly_vlm.metrics._options import PixelOptions
from anomaly_vlm.metrics._pixel import PixelEngine


def pixel_engine(options: PixelOptions) -> PixelEngine:
    """An empty engine."""
    return ExactEngine(options) if options.mode == "exact" else BinnedEngine(options)
