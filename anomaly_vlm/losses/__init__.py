"""Losses as pure functions of tensors, and the weighted terms that a config makes of them."""

from anomaly_vlm.losses.dice import dice_loss
from anomaly_vlm.losses.focal import focal_loss
from anomaly_vlm.losses.terms import KINDS, LossTerm, build_terms

__all__ = ["KINDS", "LossTerm", "build_terms", "dice_loss", "focal_loss"]
