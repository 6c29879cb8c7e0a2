"""WinCLIP, CVPR 2023: windows of an image against texts, and against windows of a few normal images."""

from anomaly_vlm.methods.winclip.method import WinCLIP

__all__ = ["WinCLIP"]
