"""The families: what is drawn, which side it is on, which defects it can have, and its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .canvas import Canvas, Scene
from .markings import marked
from .objects import electric, hardware, natural, small
from .textures import made, mineral, organic, woven

Side = Literal["train", "test"]


@dataclass(frozen=True)
class Family:
    """One family of pictures.

    Attributes:
        name: Name as it stands in paths.
        kind: `texture` (fills the picture) or `object`.
        side: `train` (its fresh images are the validation set too) or `test` (held out).
        draw: Draws a normal scene on a canvas.
        nouns: Words for captions, the category first.
        defects: The kinds of defect it can have.
    """

    name: str
    kind: Literal["texture", "object"]
    side: Side
    draw: Callable[[Canvas], Scene]
    nouns: tuple[str, ...]
    defects: tuple[str, ...]

    @property
    def category(self) -> str:
        """The word for prompts."""
        return self.name.replace("_", " ")


# Textures that only a label can be stuck on, and objects that carry a print or an embossed sign now and then.
LABELLED = frozenset(("perforated", "wire_mesh", "circuit_board", "carpet", "solar_cell", "knit", "wicker"))
STAMPED = frozenset(
    ("gear", "nut", "washer", "bearing", "key", "connector", "blister_pack", "toothbrush", "button", "bottle")
)


def _filling(name: str, paint: Callable[[Canvas], np.ndarray]) -> Callable[[Canvas], Scene]:
    """A texture as a scene: it covers everything, and a dark ground lies below it."""

    def draw(canvas: Canvas) -> Scene:
        image = np.clip(paint(canvas), 0, 1)
        kinds = ("label",) if name in LABELLED else ("label", "print", "relief")
        everywhere = np.ones(canvas.shape, np.float32)
        for _ in range(2):
            if canvas.dice.chance(0.4):
                image = np.clip(marked(canvas, image, everywhere, 0.8, (0.09, 0.22), kinds), 0, 1)
        below = image.mean(axis=(0, 1)) * np.float32(canvas.dice.uniform(0.1, 0.45))
        background = np.broadcast_to(below, image.shape)
        return Scene(image, everywhere, background)

    return draw


def _standing(name: str, paint: Callable[[Canvas], Scene]) -> Callable[[Canvas], Scene]:
    def draw(canvas: Canvas) -> Scene:
        scene = paint(canvas)
        image = np.clip(scene.image, 0, 1)
        if name in STAMPED and canvas.dice.chance(0.3):
            image = marked(canvas, image, scene.coverage, 0.4, (0.08, 0.16), ("print", "relief"))
        return Scene(np.clip(image, 0, 1), scene.coverage, np.clip(scene.background, 0, 1))

    return draw


CLOTH = ("cut", "hole", "stain", "thread", "contamination", "burn", "discoloration", "wear")
STONE = ("crack", "chip", "stain", "contamination", "hole", "scratch", "discoloration", "glue")
SHEET = ("scratch", "dent", "stain", "contamination", "bump", "wear", "discoloration", "glue")
METAL = ("scratch", "broken_edge", "dent", "rust", "contamination", "crack", "wear", "thread")
GOODS = ("scratch", "broken_edge", "crack", "contamination", "stain", "chip", "discoloration", "hole")

_TEXTURES: tuple[tuple[str, Side, Callable[[Canvas], np.ndarray], tuple[str, ...], tuple[str, ...]], ...] = (
    ("wood", "train", organic.wood, ("wooden board", "timber"),
     ("scratch", "crack", "hole", "stain", "burn", "glue", "chip", "contamination", "misplaced")),
    ("cork", "train", organic.cork, ("cork board", "corkboard"),
     ("cut", "hole", "stain", "contamination", "scratch", "dent", "burn", "thread")),
    ("paper", "train", organic.paper, ("sheet of paper", "page"),
     ("cut", "hole", "stain", "burn", "thread", "contamination", "bump", "discoloration")),
    ("marble", "train", organic.marble, ("marble slab", "polished stone"), (*STONE, "misplaced")),
    ("concrete", "train", mineral.concrete, ("concrete wall", "cement"), (*STONE, "wear")),
    ("granite", "train", mineral.granite, ("granite slab", "granite stone"), STONE),
    ("terrazzo", "train", mineral.terrazzo, ("terrazzo floor", "terrazzo slab"), (*STONE, "smear")),
    ("asphalt", "train", mineral.asphalt, ("asphalt road", "pavement"), STONE),
    ("brick", "train", mineral.brick, ("brick wall", "masonry"), (*STONE, "misplaced", "wear")),
    ("fabric", "train", woven.fabric, ("woven fabric", "cloth", "textile"), (*CLOTH, "bend", "misplaced", "smear")),
    ("carbon_fibre", "train", woven.carbon_fibre, ("carbon fibre sheet", "composite"),
     ("scratch", "cut", "bend", "misplaced", "glue", "bump", "contamination", "thread")),
    ("wicker", "train", woven.wicker, ("wicker basket", "straw mat"),
     ("cut", "hole", "stain", "bend", "burn", "misplaced", "thread", "discoloration")),
    ("knit", "train", woven.knit, ("knitted fabric", "knitwear"), (*CLOTH, "bend", "misplaced")),
    ("carpet", "train", woven.carpet, ("rug",),
     ("cut", "hole", "stain", "thread", "contamination", "burn", "wear", "glue")),
    ("felt", "train", woven.felt, ("felt cloth", "felted wool"), CLOTH),
    ("brushed_metal", "train", made.brushed_metal, ("metal sheet", "steel plate"),
     ("scratch", "dent", "rust", "stain", "contamination", "bump", "wear", "misplaced")),
    ("plastic", "train", made.plastic, ("plastic surface", "plastic part"), (*SHEET, "crack", "burn")),
    ("painted_panel", "train", made.painted_panel, ("car body panel",), (*SHEET, "rust", "chip")),
    ("corrugated_sheet", "train", made.corrugated, ("corrugated metal",),
     ("scratch", "dent", "hole", "stain", "bend", "rust", "contamination", "crack")),
    ("rubber_mat", "train", made.rubber_mat, ("rubber flooring",),
     ("cut", "hole", "stain", "contamination", "bend", "misplaced", "wear", "glue", "bump")),
    ("wire_mesh", "train", made.mesh, ("metal grid",),
     ("bend", "contamination", "thread", "glue", "misplaced", "rust", "smear")),
    ("circuit_board", "train", made.circuit_board, ("PCB",),
     ("scratch", "burn", "contamination", "glue", "stain", "hole", "misplaced", "rust", "thread")),
    ("solar_cell", "train", made.solar_cell, ("photovoltaic cell",),
     ("crack", "scratch", "burn", "stain", "discoloration", "contamination", "chip", "smear")),
    ("leather", "test", organic.leather, ("hide", "leather cover"),
     ("cut", "scratch", "hole", "stain", "wear", "glue", "bump", "thread", "discoloration")),
    ("perforated", "test", made.perforated, ("perforated sheet", "perforated plate"),
     ("scratch", "bend", "contamination", "stain", "misplaced", "dent", "thread", "discoloration")),
    ("tile", "test", mineral.tile, ("ceramic tile", "glazed tile"),
     ("crack", "chip", "scratch", "stain", "glue", "contamination", "hole", "discoloration")),
)  # fmt: skip

_OBJECTS: tuple[tuple[str, Side, Callable[[Canvas], Scene], tuple[str, ...], tuple[str, ...]], ...] = (
    ("pill", "train", small.pill, ("tablet",), (*GOODS, "smear")),
    ("capsule", "train", small.capsule, ("gelatine capsule",),
     ("scratch", "crack", "dent", "stain", "contamination", "hole", "glue", "discoloration", "bend")),
    ("blister_pack", "train", small.blister_pack, ("pack of tablets",),
     ("dent", "cut", "hole", "scratch", "contamination", "bend", "discoloration", "misplaced")),
    ("coin", "train", small.coin, ("metal coin",), METAL),
    ("bottle_cap", "train", small.bottle_cap, ("crown cap",), (*METAL, "smear")),
    ("biscuit", "train", natural.biscuit, ("cookie",),
     ("broken_edge", "crack", "hole", "burn", "contamination", "chip", "stain", "thread")),
    ("tealight", "train", natural.tealight, ("candle",),
     ("crack", "hole", "contamination", "dent", "stain", "burn", "thread", "chip")),
    ("screw", "train", hardware.screw, ("wood screw",),
     ("bend", "broken_edge", "rust", "scratch", "contamination", "dent", "thread", "smear")),
    ("nut", "train", hardware.nut, ("hex nut", "metal nut"), METAL),
    ("washer", "train", hardware.washer, ("metal ring",), (*METAL, "bend")),
    ("bearing", "train", hardware.bearing, ("ball bearing",), (*METAL, "misplaced")),
    ("key", "train", hardware.key, ("door key",), (*METAL, "bend")),
    ("bottle", "train", hardware.bottle, ("glass bottle",),
     ("broken_edge", "crack", "contamination", "chip", "scratch", "stain", "glue")),
    ("cable", "train", hardware.cable, ("cable cross-section",),
     ("cut", "hole", "bend", "contamination", "misplaced", "broken_edge", "discoloration", "burn")),
    ("connector", "train", electric.connector, ("plug",),
     ("broken_edge", "bend", "crack", "contamination", "misplaced", "burn", "scratch", "rust")),
    ("microchip", "train", electric.microchip, ("integrated circuit",),
     ("broken_edge", "bend", "scratch", "contamination", "smear", "burn", "crack", "chip", "misplaced")),
    ("transistor", "train", electric.transistor, ("electronic component",),
     ("broken_edge", "bend", "scratch", "contamination", "smear", "burn", "crack", "chip")),
    ("resistor", "train", electric.resistor, ("electronic component",),
     ("broken_edge", "bend", "scratch", "contamination", "burn", "crack", "chip", "stain")),
    ("toothbrush", "train", electric.toothbrush, ("brush head",),
     ("bend", "contamination", "stain", "hole", "discoloration", "misplaced", "thread", "smear")),
    ("hazelnut", "test", natural.hazelnut, ("nut in its shell",),
     ("crack", "hole", "cut", "scratch", "stain", "chip", "contamination", "burn")),
    ("gear", "test", hardware.gear, ("gear wheel", "cogwheel"), (*METAL, "bend")),
    ("button", "test", small.button, ("sewing button",),
     ("broken_edge", "crack", "scratch", "chip", "stain", "hole", "contamination", "discoloration", "bump")),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    name: Family(name, "texture", side, _filling(name, paint), (name.replace("_", " "), *nouns), defects)
    for name, side, paint, nouns, defects in _TEXTURES
} | {
    name: Family(name, "object", side, _standing(name, paint), (name.replace("_", " "), *nouns), defects)
    for name, side, paint, nouns, defects in _OBJECTS
}
