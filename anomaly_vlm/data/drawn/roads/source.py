"""Road scenes as a data set: an index of pictures that are drawn on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly_vlm.data.drawn.products.draws import RandomDraws
from anomaly_vlm.data.types import UNKNOWN, Drawn, Sample
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.options import check_arguments

from .canvas import RoadCanvas
from .ground import View, paint_backdrop, paint_ground
from .known import known_objects
from .unknown import unknown_objects

SIDES = {"train": 0, "val": 1, "test": 2}
_SCENE, _UNKNOWN, _CAMERA = range(3)  # streams of random numbers of one scene
LEAST = 0.004  # share of the pixels that unknown objects must show


@dataclass(frozen=True)
class RoadDrawing:
    """One scene: the same fields always give the same pixels, at any size the same scene.

    Attributes:
        seed: Seed of the data set.
        side: `train`, `val` or `test`; unknown objects stand in `val` and `test` alone.
        number: Number of the scene.
        height: Size in pixels.
        width: Size in pixels.
    """

    seed: int
    side: str
    number: int
    height: int
    width: int

    def draw(self) -> Drawn:
        """Picture uint8 [H, W, 3]; labels uint8 [H, W]: Cityscapes train ids, 254 unknown objects; a sentence."""
        canvas = RoadCanvas(self.height, self.width, self._draws(_SCENE))
        view = View.drawn_from(canvas.draws, canvas.aspect)
        paint_ground(canvas, view)
        paint_backdrop(canvas, view)
        things = known_objects(canvas.draws, view)
        unknown = unknown_objects(self._draws(_UNKNOWN), view, canvas.aspect) if self.side != "train" else []
        for thing in sorted([*things, *unknown], key=lambda thing: thing.depth):  # far ones first
            thing.draw(canvas, view)
        if unknown and (canvas.label == UNKNOWN).mean() < LEAST:  # all of them hidden
            unknown[0].draw(canvas, view)
        names = "a road" + (f" with {len(unknown)} unknown object{'s' * (len(unknown) > 1)}" if unknown else "")
        return Drawn(self._seen(canvas), canvas.label, f"a drawn picture of {names}")

    def _seen(self, canvas: RoadCanvas) -> np.ndarray:
        """Light, tint, a darker border and the sensor's grain."""
        draws = self._draws(_CAMERA)
        light = draws.uniform(0.75, 1.15) * np.array([draws.uniform(0.96, 1.04) for _ in range(3)], np.float32)
        far = (canvas.x / canvas.aspect - 0.5) ** 2 + (canvas.y - 0.5) ** 2
        shade = 1 - draws.uniform(0, 0.25) * far
        image = canvas.image * light * shade[..., None]
        image = image + 0.015 * draws.grain(*image.shape)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _draws(self, stream: int) -> RandomDraws:
        return RandomDraws(self.seed, SIDES[self.side], self.number, stream)


class ProceduralRoadSource:
    """Drawn road scenes with labels of 11 Cityscapes classes; unknown objects on the road on the sides `val` and `test`.

    Args:
        name: Name of the data set in tables.
        seed: Other seeds give other scenes on every side.
        height: Height of a scene in pixels.
        width: Width of a scene in pixels.
        train_count: Number of training scenes.
        val_count: Number of validation scenes.
        test_count: Number of test scenes.

    Raises:
        UserError: A count or a size out of range.
    """

    def __init__(
        self,
        name: str = "procedural_road",
        seed: int = 0,
        height: int = 96,
        width: int = 192,
        train_count: int = 240,
        val_count: int = 40,
        test_count: int = 40,
    ) -> None:
        counts = {"train_count": train_count, "val_count": val_count, "test_count": test_count}
        check_arguments(
            type(self),
            {"name": name, "height": height, "width": width, "seed": seed, **counts},
            owner="procedural_road",
        )
        for side, size in (("height", height), ("width", width)):
            if not 32 <= size <= 4096:
                raise UserError(f"procedural_road {side} is {size}: give 32 to 4096 pixels")
        if seed < 0:
            raise UserError(f"procedural_road seed is {seed}: give 0 or more")
        self.counts = {"train": train_count, "val": val_count, "test": test_count}
        for side, count in self.counts.items():
            if count < 0:
                raise UserError(f"procedural_road {side}_count is {count}: give 0 or more")
        self.name, self.seed, self.height, self.width = name, seed, height, width

    @property
    def note(self) -> str:
        """What the scenes are, in words."""
        return f"drawn, {self.height} x {self.width}"

    def references(self) -> list[Sample]:
        """None: no method compares road scenes with reference images."""
        return []

    def samples(self, side: str) -> list[Sample]:
        """The index of `train`, `val` or `test`."""
        if side not in SIDES:
            raise unknown_choice("side of a data set", side, SIDES)
        return [
            Sample(
                path=f"{self.name}/{side}/{number:05d}",
                category="road",
                label=int(side != "train"),
                defect="good" if side == "train" else "unknown object",
                split=side,
                dataset=self.name,
                kind="semantic",
                drawing=RoadDrawing(self.seed, side, number, self.height, self.width),
            )
            for number in range(self.counts[side])
        ]
