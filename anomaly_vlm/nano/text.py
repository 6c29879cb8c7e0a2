"""First stage: the text tower learns to say state, noun and kind of defect along directions of their own.

Fixed orthonormal directions in the joint space: one for the state, one for each noun class, one for each kind of defect. A
sentence is taught to lie at plus or minus half its length along the state, and to be told apart along the others. What is
left of its length is free. Without this split a text tower keeps the state alone, and prompts mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import FrozenClip
from anomaly_vlm.nano.model import as_backbone
from anomaly_vlm.nano.words import GENERIC_NOUN, NOUNS, STATES, Caption, random_caption

SCALE = 20.0  # of the noun and defect softmax
STATE = 0.5  # share of a sentence's length along the state


class Directions:
    """The fixed directions, rows of an orthonormal basis of the joint space: `state` [C], `nouns` [n, C], `kinds` [k, C]."""

    def __init__(self, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        count = len(NOUNS) + 1
        self.state, self.nouns = basis[0], basis[1 : 1 + count]
        self.kinds = basis[1 + count : 1 + count + len(STATES) - 1]  # `damaged` in general and each kind


def captions(seed: int, step: int, count: int) -> list[Caption]:
    """The training sentences of a step."""
    rng = np.random.default_rng([seed, 1, step])
    return [random_caption(rng) for _ in range(count)]


def encode(backbone: FrozenClip, texts: list[str]) -> Tensor:
    """Unit features [N, C]."""
    return F.normalize(backbone.encode_text(backbone.tokenize(texts)), dim=-1)


def losses(features: Tensor, said: list[Caption], directions: Directions) -> Tensor:
    """Mean loss of sentences with features [N, C]."""
    noun = torch.tensor([caption.noun for caption in said])
    state = torch.tensor([caption.state for caption in said])
    target = torch.where(state == 0, -STATE, STATE)
    loss = 4 * F.mse_loss(features @ directions.state, target)
    loss = loss + F.cross_entropy(SCALE * features @ directions.nouns.T, noun)
    damaged = state > 0
    return loss + F.cross_entropy(SCALE * features[damaged] @ directions.kinds.T, state[damaged] - 1)


def train(
    model: torch.nn.Module, *, seed: int, steps: int, batch: int, lr: float, tell: Callable[[str], None]
) -> Directions:
    """Trains the text tower in place."""
    backbone = as_backbone(model)
    directions = Directions(backbone.embed_dim, seed)

    def loss(step: int) -> Tensor:
        said = captions(seed, step, batch)
        return losses(encode(backbone, [caption.text for caption in said]), said, directions)

    fit(backbone, loss, steps=steps, lr=lr, tell=tell)
    return directions


def fit(
    backbone: FrozenClip, loss: Callable[[int], Tensor], *, steps: int, lr: float, tell: Callable[[str], None]
) -> None:
    """Trains a text tower by the loss of each step, then freezes it."""
    parameters = [p.requires_grad_() for p in backbone.text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            tell(f"text {step + 1}/{steps}: loss {value.item():.3f}, {time.monotonic() - started:.0f} s")
    backbone.requires_grad_(False)


@torch.no_grad()
def gate(model: torch.nn.Module, directions: Directions, *, seed: int, count: int = 2000) -> dict[str, float]:
    """What the text tower understands of fresh captions: accuracies, and cosines between flawless things.

    `passed` is 1 where the noun accuracy is at least 0.9 and every pair of flawless nouns has a cosine below 0.9.
    """
    backbone = as_backbone(model)
    said = captions(seed, 10**9, count)
    features = torch.cat([encode(backbone, [c.text for c in said[i : i + 250]]) for i in range(0, count, 250)])
    noun = torch.tensor([caption.noun for caption in said])
    state = torch.tensor([caption.state for caption in said])
    named = noun != GENERIC_NOUN
    damaged = state > 0
    flawless = encode(backbone, [f"a photo of a flawless {name.replace('_', ' ')}." for name in NOUNS])
    spoilt = encode(backbone, [f"a photo of a damaged {name.replace('_', ' ')}." for name in NOUNS])
    between = (flawless @ flawless.T).masked_select(~torch.eye(len(NOUNS), dtype=torch.bool))
    facts = {
        "state_accuracy": ((features @ directions.state > 0) == damaged).float().mean().item(),
        "noun_accuracy": ((features @ directions.nouns.T).argmax(1) == noun)[named].float().mean().item(),
        "kind_accuracy": (
            ((features[damaged] @ directions.kinds.T).argmax(1) == state[damaged] - 1).float().mean().item()
        ),
        "flawless_cosine_mean": between.mean().item(),
        "flawless_cosine_max": between.max().item(),
        "state_cosine_mean": (flawless * spoilt).sum(1).mean().item(),
    }
    facts["passed"] = float(facts["noun_accuracy"] >= 0.9 and facts["flawless_cosine_max"] < 0.9)
    return facts
