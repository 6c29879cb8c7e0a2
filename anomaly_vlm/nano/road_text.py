"""Words of `nano_convnext`, and its text tower: road classes, textures and everything else along fixed directions.

Fixed orthonormal directions in the joint space: one for each of the 19 Cityscapes classes, one for each drawn texture, one
for "something else". A sentence about a class lies along the class's direction, one about a texture between its own and
"something else", any other along "something else". A part of the length stays free, in which such words may differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import FrozenClip
from anomaly_vlm.data.drawn.products.families import FAMILIES
from anomaly_vlm.methods.vl4ad.vocabulary import Vocabulary, concept_vectors
from anomaly_vlm.nano import words
from anomaly_vlm.nano.text import SCALE, encode, fit
from anomaly_vlm.texts import load_texts

NAMED, ELSE = 0.9, 0.6  # least share of a sentence's length along what it says
_TEMPLATES = (
    "{}",
    "{}.",
    "a {}",
    "the {}",
    "a photo of {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
)


@cache
def vocabulary() -> Vocabulary:
    """The classes and concepts of VL4AD's table."""
    return Vocabulary(load_texts("vl4ad_prompts"))


@cache
def things() -> tuple[tuple[str, ...], ...]:
    """The words for each thing with a direction of its own.

    The 19 classes come first, by train id; then the textures of the training families, without words that a class has.
    """
    road = {word for concepts in vocabulary().concepts for concept in concepts for word in concept.split()}
    textures = []
    for name in TEXTURES:
        nouns = tuple(noun for noun in FAMILIES[name].nouns if not road & set(noun.split()) and noun != "pavement")
        textures.append(nouns)
    return (*vocabulary().concepts, *textures)


TEXTURES = tuple(sorted(name for name, f in FAMILIES.items() if f.side == "train" and f.kind == "texture"))
CLASSES = 19
ELSEWHERE = CLASSES + len(TEXTURES)  # the thing that all other words name


@cache
def others() -> tuple[str, ...]:
    """Words for something else: the proposed OOD prompts and the words of the prompt lists that name no thing here."""
    said = " ".join([*(word for nouns in things() for word in nouns), *vocabulary().templates, *_TEMPLATES])
    held_out = " ".join(noun for family in FAMILIES.values() if family.side == "test" for noun in family.nouns)
    taken = set(re.findall("[a-z]+", f"{said} {held_out}".lower()))
    taken |= {word + "s" for word in taken} | {word[:-1] for word in taken if word.endswith("s")}
    plain = tuple(word for word in words.prompt_words() if len(word) > 2 and word not in taken)
    return (*dict.fromkeys([*(text for entry in vocabulary().proposed for text in entry), *plain]),)


def targets(width: int, seed: int) -> Tensor:
    """[things + 1, width] of unit norm: where sentences of each thing belong; the last is "something else"."""
    generator = torch.Generator().manual_seed(seed)
    rows: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][: ELSEWHERE + 1].clone()
    rows[CLASSES:ELSEWHERE] = F.normalize(rows[CLASSES:ELSEWHERE] + rows[ELSEWHERE], dim=-1)
    return rows


def draw_caption(rng: np.random.Generator, thing: int) -> str:
    """A sentence about a thing, or about something else."""
    if thing == ELSEWHERE:
        options = others()
        word = " ".join(options[int(rng.integers(len(options)))] for _ in range(1 + (rng.random() < 0.2)))
    else:
        nouns = things()[thing]
        word = nouns[int(rng.integers(len(nouns)))]
    templates = vocabulary().templates if rng.random() < 0.8 else _TEMPLATES
    return templates[int(rng.integers(len(templates)))].format(word)


def captions(seed: int, step: int, count: int) -> tuple[list[str], Tensor]:
    """The sentences of a step, and their things [count]: half of them classes, a fifth textures."""
    rng = np.random.default_rng([seed, 3, step])
    texts, said = [], []
    for draw in rng.random(count):
        low, high = (0, CLASSES) if draw < 0.5 else (CLASSES, ELSEWHERE) if draw < 0.7 else (ELSEWHERE, ELSEWHERE + 1)
        said.append(int(rng.integers(low, high)))
        texts.append(draw_caption(rng, said[-1]))
    return texts, torch.tensor(said)


def losses(features: Tensor, said: Tensor, aims: Tensor) -> Tensor:
    """Mean loss of sentences with unit features [N, C] that say `said` [N]; `aims` as of `targets`."""
    similar = features @ aims.T
    own = similar.gather(1, said[:, None])[:, 0]
    least = torch.where(said == ELSEWHERE, ELSE, NAMED)
    return F.cross_entropy(SCALE * similar, said) + 4 * F.relu(least - own).mean()


def train(
    backbone: FrozenClip, *, seed: int, steps: int, batch: int, lr: float, tell: Callable[[str], None]
) -> None:  # fmt: skip
    """Trains the text tower in place."""
    aims = targets(backbone.text.text_projection.shape[1], seed)

    def loss(step: int) -> Tensor:
        texts, said = captions(seed, step, batch)
        return losses(encode(backbone, texts), said, aims)

    fit(backbone, loss, steps=steps, lr=lr, tell=tell)


@torch.no_grad()
def gate(backbone: FrozenClip, *, seed: int) -> dict[str, float]:
    """What the text tower makes of VL4AD's own texts.

    `passed` is 1 where at least 98 % of the concepts' sentences are nearest to their class, every concept vector has a
    cosine of at least 0.8 with its class's direction, and no OOD prompt one above 0.5 with any class's.
    """
    book = vocabulary()
    aims = targets(backbone.text.text_projection.shape[1], seed)
    texts = [concept for concepts in book.concepts for concept in concepts]
    owner = torch.tensor([k for k, concepts in enumerate(book.concepts) for _ in concepts])
    sentences = [template.format(text) for text in texts for template in book.templates]
    nearest = (encode(backbone, sentences) @ aims.T).argmax(1)
    own = (concept_vectors(backbone, texts, book.templates) * aims[owner]).sum(1)
    ood = concept_vectors(backbone, [text for entry in book.proposed for text in entry], book.templates)
    facts = {
        "class_accuracy": (nearest == owner.repeat_interleave(len(book.templates))).float().mean().item(),
        "class_cosine_min": own.min().item(),
        "ood_class_cosine_max": (ood @ aims[:CLASSES].T).max().item(),
        "ood_else_cosine_mean": (ood @ aims[ELSEWHERE]).mean().item(),
    }
    facts["passed"] = float(
        facts["class_accuracy"] >= 0.98 and facts["class_cosine_min"] >= 0.8 and facts["ood_class_cosine_max"] <= 0.5
    )
    return facts


@torch.no_grad()
def caption_bank(backbone: FrozenClip, *, seed: int, each: int) -> Tensor:
    """Unit features [things + 1, each, C] of sentences, against which the image tower trains."""
    rng = np.random.default_rng([seed, 4])
    rows = [encode(backbone, [draw_caption(rng, thing) for _ in range(each)]) for thing in range(ELSEWHERE + 1)]
    return torch.stack(rows)


def token_rows() -> np.ndarray:
    """Ids of the tokens that the file stores, ascending: those of the nano CLIP, of all sentences here, and of the table."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ids = set(words.token_rows().tolist())
    texts = [*(noun for nouns in things() for noun in nouns), *others()]
    texts += [template.replace("{}", " ") for template in (*vocabulary().templates, *_TEMPLATES)]
    for text in texts:
        ids.update(tokenizer.encode(text))
    return np.array(sorted(ids), np.int64)
