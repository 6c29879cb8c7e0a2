"""Pictures drawn by the project itself: a benchmark of 48 families and 19 kinds of defect that needs no download.

Frozen: with seed 0 its pictures and its difficulty (`anomaly_vlm.bench.trivial`) do not change; tests hold both.
"""

from .defects.catalogue import KINDS
from .families import FAMILIES, Family
from .source import ProceduralDrawing, ProceduralSource

__all__ = ["FAMILIES", "KINDS", "Family", "ProceduralDrawing", "ProceduralSource"]
