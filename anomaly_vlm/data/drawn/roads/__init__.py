"""Drawn road scenes: semantic labels of known classes for training, unknown objects on the road for testing."""

from .source import SIDES, ProceduralRoadSource, RoadDrawing

__all__ = ["SIDES", "ProceduralRoadSource", "RoadDrawing"]
