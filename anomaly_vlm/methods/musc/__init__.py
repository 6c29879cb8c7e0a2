"""MuSc: all test images of a category score each other."""

from anomaly_vlm.methods.musc.method import MuSc

__all__ = ["MuSc"]
