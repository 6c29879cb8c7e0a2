"""All kinds of defect: function, where it goes, how large, how visible, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import areas, forms, lines
from .spot import Spot


@dataclass(frozen=True)
class Kind:
    """One kind of defect.

    Attributes:
        draw: Function of a `Spot`, returns the changed window, float32 [H, W, 3].
        place: `inside`, `edge` or `across` (see `spot.find`).
        extent: Smallest and largest radius, canvas units (the picture is 2 wide).
        gain: How far its contrast may be lowered and raised to meet the drawn visibility; (1, 1) where it is geometry.
        grain: Width over which the change is averaged to find the mask, canvas units.
        words: Phrases that complete "with ..." in a caption.
        states: Adjectives for a caption.
    """

    draw: Callable[[Spot], np.ndarray]
    place: str
    extent: tuple[float, float]
    gain: tuple[float, float]
    grain: float
    words: tuple[str, ...]
    states: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "scratch": Kind(lines.scratch, "inside", (0.18, 0.5), (0.3, 2.5), 0.01,
                    ("a scratch", "scratches", "a fine scratch"), ("scratched",)),
    "crack": Kind(lines.crack, "inside", (0.2, 0.5), (0.4, 1.6), 0.01,
                  ("a crack", "a hairline crack", "a fracture"), ("cracked", "fractured")),
    "cut": Kind(lines.cut, "inside", (0.16, 0.38), (0.4, 1.3), 0.01, ("a cut", "a slit", "a tear"), ("cut", "torn")),
    "thread": Kind(lines.thread, "across", (0.2, 0.42), (0.4, 1.3), 0.01,
                   ("a loose thread", "a hair on it", "a thread on it"), ("contaminated",)),
    "stain": Kind(areas.stain, "inside", (0.11, 0.28), (0.25, 1.8), 0.02,
                  ("a stain", "a dirty spot", "a dark stain"), ("stained", "dirty")),
    "discoloration": Kind(areas.discoloration, "inside", (0.14, 0.32), (0.25, 1.8), 0.03,
                          ("a discoloration", "a faded spot", "a wrong colour"), ("discolored", "faded")),
    "burn": Kind(areas.burn, "inside", (0.11, 0.28), (0.3, 1.2), 0.02,
                 ("a burn mark", "a scorched spot", "a burn"), ("burnt", "scorched")),
    "rust": Kind(areas.rust, "inside", (0.12, 0.28), (0.35, 1.4), 0.02,
                 ("rust", "a rust spot", "corrosion"), ("rusty", "corroded")),
    "wear": Kind(areas.wear, "inside", (0.13, 0.3), (0.3, 2.0), 0.03,
                 ("wear", "an abrasion", "a worn spot"), ("worn", "abraded")),
    "contamination": Kind(areas.contamination, "across", (0.08, 0.22), (0.4, 1.4), 0.01,
                          ("contamination", "a foreign particle", "dirt on it"), ("contaminated", "dirty")),
    "glue": Kind(areas.glue, "across", (0.11, 0.26), (0.5, 1.8), 0.02,
                 ("a drop of glue", "a glue residue", "a spilled drop"), ("contaminated", "sticky")),
    "hole": Kind(forms.hole, "inside", (0.08, 0.2), (0.5, 1.2), 0.01,
                 ("a hole", "a small hole", "a puncture"), ("pierced", "punctured")),
    "chip": Kind(forms.chip, "inside", (0.09, 0.24), (0.4, 1.6), 0.01,
                 ("a chip", "a flake broken off", "a chipped spot"), ("chipped", "broken")),
    "broken_edge": Kind(forms.broken_edge, "edge", (0.13, 0.28), (0.7, 1.2), 0.01,
                        ("a broken edge", "a missing piece", "a chipped rim"), ("broken", "chipped")),
    "dent": Kind(forms.dent, "inside", (0.12, 0.28), (0.4, 1.6), 0.03,
                 ("a dent", "a dented spot", "a pressure mark"), ("dented",)),
    "bump": Kind(forms.bump, "inside", (0.12, 0.28), (0.4, 1.6), 0.03,
                 ("a bump", "a bubble", "a blister"), ("bumpy", "blistered")),
    "bend": Kind(forms.bend, "across", (0.18, 0.36), (1.0, 1.0), 0.03,
                 ("a bend", "a deformed part", "a distortion"), ("bent", "deformed", "distorted")),
    "misplaced": Kind(forms.misplaced, "inside", (0.14, 0.3), (1.0, 1.0), 0.04,
                      ("a misplaced part", "a wrong pattern", "a swapped patch"), ("faulty", "misaligned")),
    "smear": Kind(forms.smear, "inside", (0.15, 0.32), (1.0, 1.0), 0.03,
                  ("a smear", "a smudge", "a blurred spot"), ("smeared", "smudged")),
}  # fmt: skip
