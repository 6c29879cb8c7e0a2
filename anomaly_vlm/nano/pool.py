"""Pictures for the image tower: twins of the training families, drawn once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.data.drawn.products.source import ProceduralDrawing
from anomaly_vlm.nano.words import NOUNS, STATES

SEED = 7000  # of the first pool; the benchmark's own pictures have seed 0 and are never trained on
SIDE = 128


class Pool:
    """Twins: the same scene by the same camera, flawless and damaged.

    Attributes (arrays over n twins, memory-mapped):
        flawless, damaged: uint8 [n, side, side, 3]. mask: uint8 [n, side, side], 1 where damaged.
        noun: [n] index into `NOUNS`. state: [n] index into `STATES` (a kind of damage).
    """

    def __init__(self, folder: Path) -> None:
        self.flawless, self.damaged, self.mask, self.noun, self.state = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("flawless", "damaged", "mask", "noun", "state")
        )

    def __len__(self) -> int:
        return len(self.noun)


def open_pool(folder: Path, *, seed: int, each: int, tell: Callable[[str], None]) -> Pool:
    """The pool of `each` twins a family below `folder`, drawn now where it is not there or not complete."""
    place = folder / f"pool_seed{seed}_{each}"
    done = place / "done"
    if not done.is_file():
        place.mkdir(parents=True, exist_ok=True)
        _draw(place, seed, each, tell)
        done.touch()
    return Pool(place)


def _draw(place: Path, seed: int, each: int, tell: Callable[[str], None]) -> None:
    """Draws family by family; a family that an interrupted run finished is not drawn again."""
    count = each * len(NOUNS)
    shapes = {
        "flawless": ((count, SIDE, SIDE, 3), np.uint8),
        "damaged": ((count, SIDE, SIDE, 3), np.uint8),
        "mask": ((count, SIDE, SIDE), np.uint8),
        "noun": ((count,), np.int64),
        "state": ((count,), np.int64),
    }
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        path = place / f"{name}.npy"
        arrays[name] = np.lib.format.open_memmap(path, mode="r+" if path.is_file() else "w+", dtype=dtype, shape=shape)
    for index, noun in enumerate(NOUNS):
        finished = place / f"family_{index}"
        if finished.is_file():
            continue
        defects = FAMILIES[noun].defects
        for number in range(each):
            kind = defects[number % len(defects)]
            drawing = ProceduralDrawing(SEED + seed, "train", noun, number, kind, SIDE)
            row = index * each + number
            damaged = drawing.draw()
            arrays["flawless"][row] = drawing.twin().draw().image
            arrays["damaged"][row], arrays["mask"][row] = damaged.image, damaged.mask
            arrays["noun"][row], arrays["state"][row] = index, STATES.index(kind)
        for array in arrays.values():
            array.flush()
        finished.touch()
        tell(f"pool {index + 1}/{len(NOUNS)}: {noun}")
