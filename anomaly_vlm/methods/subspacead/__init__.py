"""SubspaceAD: what the principal subspace of a few normal images leaves over of a patch."""

from anomaly_vlm.methods.subspacead.method import SubspaceAD

__all__ = ["SubspaceAD"]
