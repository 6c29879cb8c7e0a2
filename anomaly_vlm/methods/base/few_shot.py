"""`FewShot`: methods that compare with, or learn from, a few normal images of each category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from anomaly_vlm.data.types import References
from anomaly_vlm.methods.base.method import AnomalyMethod


class FewShot(AnomalyMethod):
    """A method with reference images; its class sets `reference_support` to `optional` or `required`.

    A subclass defines `fit_category`. What it holds of the references is part of its state dict, so that a checkpoint needs
    no references.
    """

    def fit_category(self, references: References) -> None:
        """Fits the memory to the reference images of one category, before anything is trained or scored.

        Learnable parameters of the category itself are created here too.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no fit_category")

    @torch.no_grad()
    def fit_references(self, references: Sequence[References] | Any, *, category: str = "object") -> None:
        """Fits the memory to reference images.

        Args:
            references: Batches of normal images, one a category, as the data module makes them; or normal images of one
                category: a path, a PIL image, a tensor `[k, 3, H, W]` in [0, 1], or a list of these.
            category: What the images show, where they are given as such.
        """
        if not (isinstance(references, Sequence) and all(isinstance(entry, References) for entry in references)):
            from anomaly_vlm.methods.base.images import references_of

            references = [references_of(self, references, category)]
        for one in references:
            batch = replace(one.batch, unencoded=one.batch.unencoded.to(self.device))
            self.fit_category(replace(one, batch=batch))
