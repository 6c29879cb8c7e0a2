"""AprilGAN: see `method.py`."""

from anomaly_vlm.methods.april_gan.method import AprilGAN

__all__ = ["AprilGAN"]
