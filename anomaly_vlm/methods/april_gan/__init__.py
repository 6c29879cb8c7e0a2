"""APRIL-GAN, CVPR 2023 VAND challenge: linear layers from patches to texts, and a memory of normal patches."""

from anomaly_vlm.methods.april_gan.method import AprilGAN

__all__ = ["AprilGAN"]
