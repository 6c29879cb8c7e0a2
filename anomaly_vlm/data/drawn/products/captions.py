"""One sentence for each picture: template x state x noun."""

from __future__ import annotations

from .defects.catalogue import KINDS
from .draws import RandomDraws
from .families import Family

TEMPLATES = (
    "a photo of {}", "a photo of {}", "a close-up photo of {}", "a cropped photo of {}", "a blurry photo of {}",
    "a bright photo of {}", "a picture of {} for visual inspection", "an image of {}", "a good photo of {}",
    "there is {} in the scene",
)  # fmt: skip
NORMAL = ("flawless", "perfect", "unblemished", "undamaged", "intact", "normal", "good")
NORMAL_TAILS = ("without defect", "without damage", "without flaw", "in good condition")
DAMAGED = ("damaged", "defective", "flawed", "faulty")
DAMAGED_TAILS = ("with a defect", "with damage", "with a flaw")
GENERIC = {"texture": ("surface", "material", "texture"), "object": ("object", "part", "product", "item")}


def caption(family: Family, defect: str, draws: RandomDraws) -> str:
    """A sentence on a picture of `family` with `defect` (`good`: none)."""
    noun = draws.choice(GENERIC[family.kind] if draws.chance(0.1) else family.nouns)
    if defect == "good":
        words = _with_state(noun, NORMAL, NORMAL_TAILS, draws)
    elif draws.chance(0.3):
        words = _with_state(noun, DAMAGED, DAMAGED_TAILS, draws)
    else:
        kind = KINDS[defect]
        words = _with_state(noun, kind.states, tuple(f"with {w}" for w in kind.words), draws)
    return draws.choice(TEMPLATES).format(words)


def _with_state(noun: str, states: tuple[str, ...], tails: tuple[str, ...], draws: RandomDraws) -> str:
    words = f"{draws.choice(states)} {noun}" if draws.chance(0.5) else f"{noun} {draws.choice(tails)}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
