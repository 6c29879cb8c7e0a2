"""LinearHeads: see `method.py`."""

from anomaly_vlm.methods.linear_heads.method import LinearHeads

__all__ = ["LinearHeads"]
