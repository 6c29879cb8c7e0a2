"""What the metrics are made of."""

from anomaly_vlm.metrics._engine.binned import BinnedEngine
from anomaly_vlm.metrics._engine.exact import ExactEngine
from anomaly_vlm.metrics._engine.options import PixelOptions
from anomaly_vlm.metrics._engine.pixel import PixelEngine


def pixel_engine(options: PixelOptions) -> PixelEngine:
    """An empty engine."""
    return ExactEngine(options) if options.mode == "exact" else BinnedEngine(options)
