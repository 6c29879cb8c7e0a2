"""AnomalyDINO: distances to the nearest patches of a few normal images and their rotations."""

from anomaly_vlm.methods.anomalydino.method import AnomalyDINO

__all__ = ["AnomalyDINO"]
