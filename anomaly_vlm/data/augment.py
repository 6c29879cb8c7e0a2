"""Training augmentations: kornia operations on image and mask together, repeatable sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.data.class_aware import ClassAware
from anomaly_vlm.data.crops import RandomCrop
from anomaly_vlm.errors import UserError

_operating = Lock()  # kornia draws from the one global generator, and keeps what it drew


class Augment:
    """A chain of `kornia.augmentation` modules.

    Args:
        operations: In their order; each draws from its own parameters. Geometric ones turn the mask along, nearest.
    """

    def __init__(self, operations: Sequence[Any]) -> None:
        from kornia.augmentation import AugmentationSequential  # only runs that augment pay for the import

        self.chain = AugmentationSequential(*operations, data_keys=None)

    def __call__(self, image: Tensor, mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Augments an image and its mask together, as `seed` says.

        Args:
            image: float32 [3, S, S] in [0, 1].
            mask: uint8 [S, S] of 0 / 1 / 255, or None.
            seed: Seed of everything random in the operations.

        Raises:
            UserError: An operation changes the size.
        """
        data = {"image": image[None]}
        if mask is not None:
            data["mask"] = mask[None, None].float()
        with _operating, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # kornia draws from the global generator
            out = self.chain(data)
        if out["image"].shape[-2:] != image.shape[-2:]:
            raise UserError(
                f"augment.operations turn {list(image.shape[-2:])} pixels into {list(out['image'].shape[-2:])}: use"
                " operations that keep the size"
            )
        return out["image"][0], None if mask is None else out["mask"][0, 0].round().to(torch.uint8)


class TrainingAugmentation:
    """What training images go through besides the method's own transform.

    Args:
        mosaic: Probability of a 2 x 2 mosaic of four draws of the same category; label and index stay the sample's.
        mosaic_on: Names of the data sets whose samples get one; None for all.
        operations: `kornia.augmentation` modules on image and mask together.
        crop: A random crop before them; None for none.
        class_aware: Mosaics and cells that keep the category, and change the label where they must.
    """

    def __init__(
        self,
        *,
        mosaic: float = 0.0,
        mosaic_on: Sequence[str] | None = None,
        operations: Sequence[Any] = (),
        crop: RandomCrop | None = None,
        class_aware: ClassAware | None = None,
    ) -> None:
        self.mosaic, self.mosaic_on = mosaic, None if mosaic_on is None else tuple(mosaic_on)
        self.operations, self.crop = Augment(operations) if len(operations) else None, crop
        self.class_aware = class_aware or ClassAware()

    def changes(self, datasets: Iterable[str]) -> bool:
        """Whether images of any of these data sets are changed."""
        mosaics = self.mosaic > 0 and any(self.makes_mosaics_of(name) for name in datasets)
        class_aware = self.class_aware.probability > 0
        return mosaics or class_aware or self.operations is not None or self.crop is not None

    def makes_mosaics_of(self, dataset: str) -> bool:
        """Whether samples of a data set may become mosaics."""
        return self.mosaic > 0 and (self.mosaic_on is None or dataset in self.mosaic_on)
