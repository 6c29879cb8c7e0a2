"""Writes what `test_frozen` compares with. Run it only when the benchmark is meant to change:

python -m tests.data.drawn.products.freeze
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_vlm.data.drawn.products import FAMILIES, ProceduralDrawing

FOLDER = Path(__file__).parent / "frozen"
SIZE = 64


def keys() -> list[ProceduralDrawing]:
    """One normal and two damaged pictures of every family; the defects rotate through the family's kinds."""
    chosen = []
    for place, family in enumerate(FAMILIES.values()):
        side = "test" if family.side == "test" else "train"
        kinds = [family.defects[(place + shift) % len(family.defects)] for shift in (0, 3)]
        chosen += [ProceduralDrawing(0, side, family.name, n, kind, SIZE) for n, kind in enumerate(("good", *kinds))]
    return chosen


def name(drawing: ProceduralDrawing) -> str:
    return f"{drawing.family}-{drawing.number}-{drawing.defect}"


def digest(drawing: ProceduralDrawing) -> str:
    """Hash of the integers behind a picture."""
    return hashlib.sha256(np.array(drawing.numbers(), "<i8").tobytes()).hexdigest()[:16]


def stored() -> list[ProceduralDrawing]:
    """The few whose pixels are kept: one damaged picture of every fourth family and of all held-out ones."""
    damaged = [d for d in keys() if d.number == 1]
    return [d for i, d in enumerate(damaged) if d.side == "test" or i % 4 == 0]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    digests = {name(drawing): digest(drawing) for drawing in keys()}
    (FOLDER / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")
    for drawing in stored():
        drawn = drawing.draw()
        rgba = np.dstack([drawn.image, np.where(drawn.mask, 255, 0).astype(np.uint8)])
        Image.fromarray(rgba).save(FOLDER / f"{name(drawing)}.png", optimize=True)


if __name__ == "__main__":
    main()
