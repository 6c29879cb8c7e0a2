"""Second stage: the image tower learns as a CLIP does, and from its teacher; the stem stays as it came, or is tuned.

Image and sentence are told from those of other pictures; the global feature and the patches of the last block are mapped by
two linear heads, dropped afterwards, to what the teacher makes of the same view. Where the teacher is sure of one of its
classes, that class is the sentence now and then. No mask and no state of a patch enters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.nano import text
from anomaly_vlm.nano.crops import LABELS, Crops, FreshViews, Seen, Statistics, on_grid, statistics
from anomaly_vlm.nano.model import as_backbone, stem_of, whiten_projection
from anomaly_vlm.nano.teacher import classes
from anomaly_vlm.nano.text import SCALE, Directions
from anomaly_vlm.nano.words import COLOURS, class_caption, draw_caption

DISTIL = ("global", "dense")  # what a teacher can teach: its global feature, its last map
WEIGHTS = {"caption": 1.0, "global": 2.0, "dense": 2.0, "text": 0.5}
SURE = 0.4  # probability from which on the teacher's class may be a picture's sentence ..
NAMED = 0.5  # .. and how often it is
TOLD = {"state": 0.6, "colour": 0.3, "around": 0.3, "place": 0.3}  # how often a sentence tells each of these
STEM_SHARE = 0.1  # of the learning rate, for a stem that is tuned: it has learned already
WORDS = 32  # sentences of the text stage in a step, so that its directions stay


@dataclass
class Step:
    """A batch: what was `seen`, the sentences `said` of it, and `same` [B, B], pictures that share theirs."""

    seen: Seen
    said: list[str]
    same: Tensor
    number: int


class ImageStage:
    """Losses of a batch of views, and what trains on them: image tower behind the stem, text tower, heads.

    Args:
        model: The CLIP, its stem already the teacher's, its text tower trained.
        crops: Of the stem: what is trained on, and the statistics of all that is.
        directions: Of the text stage.
        seed: Of sentences and heads.
        distil: What the teacher teaches, of `DISTIL`; empty: nothing.
        fresh: Given, the stem is tuned too, on views that this draws: what the stem makes of crops would be out of date.

    Raises:
        UserError: A name in `distil` that is none.
    """

    def __init__(
        self,
        model: nn.Module,
        crops: Crops,
        directions: Directions,
        *,
        seed: int,
        distil: Sequence[str] = DISTIL,
        fresh: FreshViews | None = None,
    ) -> None:
        check_distil(distil)
        self.model, self.directions, self.seed, self.distil = model, directions, seed, distil
        self.views = crops if fresh is None else fresh
        self.backbone = as_backbone(model)
        self.names = classes()
        self.facts: Statistics = statistics(crops)
        visual: Any = self.backbone.visual
        stem = stem_of(model)
        whiten_projection(stem, *self.facts.stem, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = {
                "global": nn.Linear(self.backbone.embed_dim, self.facts.pooled[0].numel()),
                "dense": nn.Linear(self.backbone.width, self.facts.dense[0].numel()),
            }
        self.heads = nn.ModuleDict({name: head for name, head in heads.items() if name in distil})
        model.requires_grad_(False)  # positions stay, and so does the scale
        for part in (visual.class_embedding, visual.proj):
            part.requires_grad_(True)
        for module in (stem.project, visual.ln_pre, visual.transformer, visual.ln_post, self.backbone.text):
            module.requires_grad_(True)
        self.backbone.text.token_embedding.requires_grad_(False)  # rows that no sentence has would only decay
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters: list[dict[str, Any]] = [{"params": [*self.trained.values(), *self.heads.parameters()]}]
        if fresh is not None:  # its batch norms keep ImageNet's means and variances
            tuned = {
                f"visual.conv1.{part}.{name}": p.requires_grad_()
                for part in ("conv_stem", "bn1", "blocks")
                for name, p in getattr(stem, part).named_parameters()
            }
            self.trained |= tuned
            self.parameters.append({"params": [*tuned.values()], "share": STEM_SHARE})
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}

    def follow(self, decay: float) -> None:
        """Moves the running average of the trained weights."""
        with torch.no_grad():
            for name, kept in self.average.items():
                kept.lerp_(self.trained[name].detach(), 1 - decay)

    # ---- sentences ---------------------------------------------------------------------------------------------------

    def draw(self, number: int, count: int) -> Step:
        """Batch `number`: views and a sentence for each, a function of (seed, number) alone."""
        rng = np.random.default_rng([self.seed, 3, number])
        seen = self.views.batch(rng, count)
        said, meant = zip(*(self._sentence(rng, seen, row) for row in range(count)), strict=True)
        same = torch.tensor([[one == other for other in meant] for one in meant])
        return Step(seen, list(said), same, number)

    def _sentence(self, rng: np.random.Generator, seen: Seen, row: int) -> tuple[str, tuple[int, int]]:
        """A sentence on a view, and what it is of: (noun, state), or (-1, class of the teacher)."""
        if seen.taught.sure[row] > SURE and rng.random() < NAMED:
            named = int(seen.taught.named[row])
            return class_caption(rng, self.names[named]), (-1, named)
        tell = {part: rng.random() < share for part, share in TOLD.items()}
        noun, state, colour, around, place = (int(seen.told[name][row]) for name in LABELS)
        colours = tuple(COLOURS)
        damaged = state > 0 and tell["state"]
        sentence = draw_caption(
            rng,
            noun,
            state if tell["state"] else None,
            colour=colours[colour] if tell["colour"] else None,
            around=colours[around] if tell["around"] and around >= 0 else None,
            place=place if damaged and tell["place"] else None,
        )
        return sentence, (noun, state)

    # ---- losses ------------------------------------------------------------------------------------------------------

    def embedded(self, seen: Seen) -> tuple[Tensor, tuple[int, int]]:
        """Input of the tower behind the stem [B, 1 + N, Dv] for views, and the grid."""
        stem = stem_of(self.model)
        return self.backbone.embed_map(stem.project(seen.stem) if seen.images is None else stem(seen.images))

    def losses(self, step: Step, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted terms of a batch."""
        backbone, taught = self.backbone, step.seen.taught
        x, grid = self.embedded(step.seen)
        words = text.captions(self.seed, step.number, WORDS)
        with torch.autocast("cpu", torch.bfloat16):  # a third of the time less
            tokens = backbone.encode_embedded(x, grid, layers=[backbone.num_layers])
            said = backbone.encode_text(backbone.tokenize([*step.said, *(caption.text for caption in words)]))
        cls, patches, said = tokens.cls.float(), tokens.patches[0].float(), F.normalize(said.float(), dim=-1)
        values = {}
        if "global" in self.distil:
            values["global"] = away(self.heads["global"](cls), taught.pooled, self.facts.pooled)
        if "dense" in self.distil:
            values["dense"] = away(self.heads["dense"](patches), on_grid(taught.dense, grid), self.facts.dense)
        count = len(step.said)
        similar = SCALE * F.normalize(cls, dim=-1) @ said[:count].T
        each = torch.arange(count)
        similar = similar.masked_fill(step.same & (each[:, None] != each), -torch.inf)
        values["caption"] = (F.cross_entropy(similar, each) + F.cross_entropy(similar.T, each)) / 2
        values["text"] = text.losses(said[count:], words, self.directions)
        return values

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([WEIGHTS[name] * value for name, value in values.items()]).sum()

    # ---- state -------------------------------------------------------------------------------------------------------

    def averaged(self) -> nn.Module:
        """A copy of the model with the averaged weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict({**model.state_dict(), **self.average})
        return model.requires_grad_(False).eval()

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run resumes from."""
        now = {name: p.detach() for name, p in self.trained.items()}
        return {"now": now, "average": self.average, "heads": self.heads.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(state["now"][name])
        self.average = dict(state["average"])
        self.heads.load_state_dict(state["heads"])


def check_distil(names: object) -> None:
    """Raises a `UserError` where `names` is no list of names of `DISTIL`."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"image.distil is {names}: give a list, such as [global, dense] or []")
    for name in names:
        if name not in DISTIL:
            raise unknown_choice("image.distil", name, DISTIL)


def away(made: Tensor, aim: Tensor, facts: tuple[Tensor, Tensor]) -> Tensor:
    """1 minus the mean cosine between [..., D] and the standardised aim: the student's distance from its teacher, 0 to 2."""
    mean, std = facts
    return 1 - F.cosine_similarity(made, (aim - mean) / std, dim=-1).mean()
