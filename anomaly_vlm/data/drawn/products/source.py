"""The embedded benchmark as a data set: an index of pictures that are drawn on demand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomaly_vlm.data.types import Drawn, Sample
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.options import check_arguments

from .canvas import Canvas, Scene
from .captions import caption
from .defects.apply import CONTRAST, Damage, damage
from .draws import RandomDraws
from .families import FAMILIES, Family
from .nuisances import Nuisances

SIDES = {"train": 0, "val": 1, "test": 2, "reference": 3}
REFERENCES = 32  # normal pictures of each held-out family to pick from
_SCENE, _CAMERA, _DEFECT, _WORDS = range(4)  # streams of random numbers of one picture


@dataclass(frozen=True)
class ProceduralDrawing:
    """One picture: the same fields always give the same pixels, at any size the same scene.

    Attributes:
        seed: Seed of the data set.
        side: `train`, `val` or `test`.
        family: Name of its family.
        number: Number of the picture in its family.
        defect: Kind of defect, `good` for none.
        size: Side in pixels.
    """

    seed: int
    side: str
    family: str
    number: int
    defect: str
    size: int

    def draw(self) -> Drawn:
        """The picture uint8 [size, size, 3], its mask bool [size, size], its caption."""
        canvas, camera, scene, done = self._scene()
        image, mask = (scene.image, np.zeros(canvas.shape, bool)) if done is None else (done.image, done.mask)
        pixels, mask = camera.apply(canvas, image, mask)
        return Drawn(pixels, mask, self.caption())

    def caption(self) -> str:
        """The sentence alone, without drawing."""
        return caption(FAMILIES[self.family], self.defect, self._draws(_WORDS))

    def twin(self) -> ProceduralDrawing:
        """The same scene seen by the same camera, without the defect."""
        return replace(self, defect="good")

    def damage(self) -> Damage | None:
        """The defect before the camera, and how many draws it took; None for a normal picture."""
        return self._scene()[3]

    def numbers(self) -> tuple[int, ...]:
        """All random integers behind the picture, in order (without the grain of the sensor and the words)."""
        canvas, camera, _, done = self._scene()
        return (*canvas.draws.drawn, *camera.draws.drawn, *(done.numbers if done else ()))

    def _scene(self) -> tuple[Canvas, Nuisances, Scene, Damage | None]:
        canvas = Canvas.whole(self.size, self._draws(_SCENE))
        family = FAMILIES[self.family]
        scene = family.draw(canvas)
        camera = Nuisances.drawn_from(self._draws(_CAMERA))
        if self.defect == "good":
            return canvas, camera, scene, None
        done = damage(canvas, scene, self.defect, self._key(_DEFECT), camera, CONTRAST[family.kind])
        return canvas, camera, scene, done

    def _key(self, stream: int) -> tuple[int, ...]:
        return (self.seed, SIDES[self.side], zlib.crc32(self.family.encode()), self.number, stream)

    def _draws(self, stream: int) -> RandomDraws:
        return RandomDraws(*self._key(stream))


class ProceduralSource:
    """Drawn pictures of textures and objects; families of the test side are never seen in training.

    Within a family every second picture is anomalous, and the kinds of defect take turns.

    Args:
        name: Name of the data set in tables.
        seed: Other seeds give other pictures of the same families; 0 is the benchmark.
        size: Side in pixels.
        train_count: Number of training pictures over all families.
        val_count: Number of validation pictures over all families.
        test_count: Number of test pictures over all families.
        categories: Families (or their words) to keep; None: all.
        train_on_all: Whether the training side has the families of the test side too, for weights that are used on pictures
            of other kinds and never evaluated here.

    Raises:
        UserError: A count or size out of range, or a category that is not drawn.
    """

    def __init__(
        self,
        name: str = "procedural",
        seed: int = 0,
        size: int = 128,
        train_count: int = 840,
        val_count: int = 336,
        test_count: int = 600,
        categories: Sequence[str] | None = None,
        train_on_all: bool = False,
    ) -> None:
        counts = {"train_count": train_count, "val_count": val_count, "test_count": test_count}
        check_arguments(type(self), {"name": name, "size": size, "seed": seed, **counts}, owner="procedural")
        if not 32 <= size <= 1024:
            raise UserError(f"procedural size is {size}: give a side of 32 to 1024 pixels")
        if seed < 0:
            raise UserError(f"procedural seed is {seed}: give 0 or more")
        self.counts = {"train": train_count, "val": val_count, "test": test_count}
        for side, count in self.counts.items():
            if count < 0:
                raise UserError(f"procedural {side}_count is {count}: give 0 or more")
        self.name, self.seed, self.size = name, seed, size
        words = {word: family.name for family in FAMILIES.values() for word in (family.name, family.category)}
        for word in categories or ():
            if word not in words:
                raise unknown_choice("procedural category", word, FAMILIES)
        self.train_on_all = train_on_all
        self.categories = None if categories is None else {words[word] for word in categories}

    def families(self, side: str) -> list[Family]:
        """The families of a side, by name."""
        if side not in SIDES:
            raise unknown_choice("side of a data set", side, SIDES)
        wanted = "test" if side in ("test", "reference") else "train"
        both = self.train_on_all and side == "train"
        every = sorted((f for f in FAMILIES.values() if both or f.side == wanted), key=lambda f: f.name)
        chosen = [family for family in every if self.categories is None or family.name in self.categories]
        if not chosen:
            raise UserError(
                f"none of the categories {', '.join(sorted(self.categories or ()))} is on the {side} side of procedural: "
                f"choose from {', '.join(family.name for family in every)}"
            )
        return chosen

    def samples(self, side: str) -> list[Sample]:
        """The index of `train` (training families), `val` (fresh pictures of them) or `test` (held-out families)."""
        families = self.families(side)
        share, extra = divmod(self.counts[side], len(families))
        rows = []
        for place, family in enumerate(families):
            rows += [self._sample(side, family, number) for number in range(share + (place < extra))]
        return rows

    def references(self) -> list[Sample]:
        """Normal pictures of the held-out families that are not in the test set."""
        families = self.families("reference")
        return [self._sample("reference", family, 2 * number) for family in families for number in range(REFERENCES)]

    def _sample(self, side: str, family: Family, number: int) -> Sample:
        defect = family.defects[number // 2 % len(family.defects)] if number % 2 else "good"
        return Sample(
            path=f"procedural/{side}/{family.name}/{number:05d}",
            category=family.category,
            label=int(defect != "good"),
            defect=defect,
            split=side,
            dataset=self.name,
            kind="mask",
            drawing=ProceduralDrawing(self.seed, side, family.name, number, defect, self.size),
        )
