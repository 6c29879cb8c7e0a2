"""Linear segmentation heads on frozen vision towers: the text-free baselines of the AdaCLIP paper."""

from anomaly_vlm.methods.linear_heads.method import LinearHeads

__all__ = ["LinearHeads"]
