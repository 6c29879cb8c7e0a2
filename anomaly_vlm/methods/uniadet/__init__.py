"""UniADet: learned normal and abnormal directions for class token and patches, level by level, on any frozen tower."""

from anomaly_vlm.methods.uniadet.method import UniADet

__all__ = ["UniADet"]
