"""The user's own photographs of good parts as training data: as they are, and with defects drawn into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_vlm.data.drawn.products.canvas import LUMA, Canvas, Scene
from anomaly_vlm.data.drawn.products.defects.apply import CONTRAST, damage
from anomaly_vlm.data.drawn.products.defects.catalogue import KINDS
from anomaly_vlm.data.drawn.products.draws import RandomDraws
from anomaly_vlm.data.drawn.products.nuisances import Nuisances
from anomaly_vlm.data.images import guess_white, open_image
from anomaly_vlm.data.own_images import image_files
from anomaly_vlm.data.readers.listing import child
from anomaly_vlm.data.types import Drawn, Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded

# No defects at edges: the outline of a photographed part is unknown.
DEFECTS = tuple(name for name, kind in KINDS.items() if kind.place != "edge")
_LIGHT, _DEFECT = range(2)  # streams of random numbers of one picture


@dataclass(frozen=True)
class DamagedPhotograph:
    """A photograph squashed to a square, with a drawn defect or as it is; in grey ones defects are grey.

    Both go the same way, so that nothing but the defect tells them apart.

    Attributes:
        path: The photograph of a good part.
        defect: Kind of defect, `good` for none.
        size: Side in pixels.
        seed: Seed of the data set.
        number: Of the picture, in the data set.
        max_value: White in files of more than 8 bits; None: guessed.
    """

    path: str
    defect: str
    size: int
    seed: int
    number: int
    max_value: float | None = None

    @property
    def files(self) -> tuple[str, tuple[str, ...]]:
        """The photograph and its masks, of which there are none."""
        return self.path, ()

    def draw(self) -> Drawn:
        """The picture uint8 [size, size, 3], its mask bool [size, size], what it is."""
        photograph = open_image(self.path, self.max_value).convert("RGB")
        pixels = np.asarray(photograph.resize((self.size, self.size), Image.Resampling.BICUBIC))
        canvas = Canvas.whole(self.size, RandomDraws(self.seed, self.number, _LIGHT))
        if self.defect == "good":
            return Drawn(pixels, np.zeros(canvas.shape, bool), "a photo of a good part")
        image = pixels.astype(np.float32) / 255
        ground = np.broadcast_to(image.mean(axis=(0, 1)), image.shape)
        scene = Scene(image, np.ones(canvas.shape, np.float32), ground)
        done = damage(
            canvas, scene, self.defect, (self.seed, self.number, _DEFECT), _clear_camera(), CONTRAST["object"]
        )
        after = done.image if np.ptp(pixels, axis=2).any() else np.repeat((done.image @ LUMA)[..., None], 3, axis=2)
        changed = np.where(done.mask[..., None], (after * 255 + 0.5).clip(0, 255).astype(np.uint8), pixels)
        return Drawn(changed, done.mask, f"a photo of a part with {KINDS[self.defect].words[0]}")


def _clear_camera() -> Nuisances:
    """A camera that adds nothing: the photograph has been taken."""
    return Nuisances(
        exposure=1.0, gamma=1.0, tint=(1.0, 1.0, 1.0), grey=0.0, slope=(0.0, 0.0), vignette=0.0, shade=None, glare=None,
        blur=0.0, noise=0.0, quality=None, turn=0, draws=RandomDraws(0),
    )  # fmt: skip


class GoodPlusDrawnDefects:
    """Photographs of good parts, and the same with one drawn defect each, in turn of `DEFECTS`; for training alone.

    Args:
        root: A folder of good parts (of a sorted one its `good/` alone), a pattern, or a list; see `own_images.image_files`.
        name: For tables; None: that of the folder.
        category: What the parts are, for the text prompts.
        count: Number of pictures, half of them with a defect.
        size: Side in pixels.
        seed: Draws the defects.
        share: Share of the photographs that is used, evenly spread; the others stay unseen.

    Raises:
        UserError: From `samples`: no photographs, or another side than training.
    """

    def __init__(
        self,
        root: str | None,
        *,
        name: str | None = None,
        category: str = "object",
        count: int = 200,
        size: int = 256,
        seed: int = 0,
        share: float = 1.0,
    ) -> None:
        if count < 2 or not 32 <= size <= 1024 or seed < 0 or not 0 < share <= 1:
            raise UserError(
                f"good_plus_drawn_defects: count {count}, size {size}, seed {seed}, share {share}: give a count of at least"
                " 2, a size from 32 to 1024, a seed of at least 0, and a share above 0 and up to 1"
            )
        self.root, self.category, self.count, self.size, self.seed, self.share = (
            root,
            category,
            count,
            size,
            seed,
            share,
        )
        place = "good parts" if root is None else expanded(root).resolve().name
        self.name = name or f"{place} with drawn defects"

    def photographs(self) -> list[Path]:
        """The photographs that are used."""
        if self.root is None:
            raise UserError(
                "good_plus_drawn_defects: no good parts given: set dataset.train.root=FOLDER (make: TRAIN_DATA=FOLDER)"
            )
        folder = expanded(self.root)
        good = child(folder, "good") if folder.is_dir() else None
        files = image_files(self.root if good is None else str(good), key="dataset.train.root")[1]
        used = max(1, round(self.share * len(files)))
        return [files[len(files) * i // used] for i in range(used)]

    def samples(self, side: str) -> list[Sample]:
        """Good and damaged pictures in turn; each photograph comes about equally often."""
        if side != "train":
            raise UserError(
                f"good_plus_drawn_defects is for training, not for side {side}: results on drawn defects would say little"
                " about real ones"
            )
        files = self.photographs()
        white = guess_white([str(file) for file in files])
        return [self._sample(str(files[i // 2 % len(files)]), i, white) for i in range(self.count)]

    def references(self) -> list[Sample]:
        """None: it is no test set."""
        return []

    def _sample(self, path: str, number: int, white: float | None) -> Sample:
        defect = DEFECTS[number // 2 % len(DEFECTS)] if number % 2 else "good"
        return Sample(
            path=path,
            category=self.category,
            label=int(defect != "good"),
            defect=defect,
            split="train",
            dataset=self.name,
            kind="mask",
            drawing=DamagedPhotograph(path, defect, self.size, self.seed, number, white),
            max_value=white,
        )
