"""FiLo: fine-grained defect descriptions in learned sentences, a detector's boxes, and convolutions of several shapes.

Gu, Zhu, Zhu, Chen, Li, Tang, Wang, "FiLo: Zero-Shot Anomaly Detection by Fine-Grained Description and High-Quality
Localization", ACM MM 2024, arXiv 2404.13671; published code, state of 2024-07-25. The defaults are the published code's. The
paper's readings: `token_capture: per_layer`, `pair_norm: false`, `score: softmax`, `map_norm: minmax`, `training: joint`,
`mmci.fuse: similarities`, and in the loss config `dice.over: image`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from anomaly_vlm.backbone import ClipBackbone, plus_next_attention
from anomaly_vlm.data.types import Batch
from anomaly_vlm.detectors import Detections, Detector, MapDetector, caption_of, detections
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.methods.base import AnomalyMethod, Prediction
from anomaly_vlm.methods.filo_boxes import best_box, damped, position_of, with_valid_phrases
from anomaly_vlm.methods.filo_texts import DefectTexts, PromptLearner, RawTexts, Sentences, embed
from anomaly_vlm.methods.mmci import KERNELS, MMCI, convolve
from anomaly_vlm.methods.parts import to_grid, upsample

log = logging.getLogger("anomaly_vlm")
CHOICES = {
    "token_capture": ("reference", "per_layer"),
    "phrase_match": ("reference", "casefold"),
    "cells": ("reference", "thirds"),
    "score": ("raw", "softmax"),
    "map_norm": ("none", "minmax"),
    "training": ("staged", "joint"),
    "mmci.fuse": ("features", "similarities"),
}


class Adapter(nn.Module):
    """Bottleneck on the global feature: `x + SiLU(W2 relu(W1 x))`, [B, C] -> [B, C]."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


class Located(NamedTuple):
    """Where an image's sentences and map should look: valid boxes, and the position that they name (None: all nine)."""

    found: Detections
    position: int | None


def probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Logits of each head [branches, B, H, W] -> probabilities [heads, B, H, W], the mean of a head's branches."""
    return torch.stack([one.sigmoid().mean(dim=0) for one in logits])


class FiLo(AnomalyMethod):
    """Sentences with descriptions and positions, linear and MMCI heads on frozen tokens, an adapter, boxes.

    Learned: contexts and their meta nets, heads (stage 1), adapter (stage 2). Frozen: both towers.

    Args:
        backbone: frozen towers (paper: OpenAI ViT-L/14@336 at 518 px, exact GELU, bicubic position grid).
        descriptions: table of texts, see `DefectTexts`. class_list, class_text: which of it.
        generic_descriptions: of categories that the table lacks. fg_des: False: sentences have the general states alone.
        detector: boxes for test images; a `MapDetector` takes them from the method's own map; None: no position, no damping.
        position_prompt: False: abnormal sentences name no position.
        layers: tapped 1-based vision blocks, one of them plain; None: the backbone's.
        n_plain: first blocks without V-V path; None: a quarter.
        token_capture: `reference`: what the published code holds under the layers' names (one final V-V state; outputs plus
            the next block's attention), which the released weights need; `per_layer`: each layer's own (paper).
        n_ctx: context tokens. kernels: (height, width) of MMCI's branches. mmci: `enabled`, and `fuse`: `features` are
            summed (code) or the branches' `similarities` are averaged (paper). adapter: False leaves it out.
        adapter_reduction, adapter_temperature: its bottleneck; of its cross entropy.
        logit_scale: of map logits. pair_norm: texts are divided by the norm of the pair too, sqrt(2) (code).
        gaussian: `kernel`, `sigma` of the blur on each map. outside_factor: of the map outside all boxes.
        map_norm: `minmax` scales each head's map to [0, 1] (paper).
        score: image part `raw` similarity (code) or its `softmax` (paper).
        box_threshold, text_threshold, area_threshold: which boxes, which words of the caption.
        phrase_match, score_cut, cells, clip_boxes: see `filo_boxes`; the first choice of each is the code's.
        training: `staged` (code) or `joint`: all terms in every epoch (paper).
        epochs: of the run. stage1_epochs, stage2_epochs: a shorter run keeps their proportion.
        lr_heads, lr_prompts, lr_adapter: rates of the parameter groups.
        base: see `AnomalyMethod`.

    Reference: sections 3.2-3.4.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "focal": PROBABILITY,
        "dice": frozenset({"dice"}),
        "image": PROBABILITY,
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        descriptions: Mapping[str, Any],
        class_list: str | None = None,
        class_text: Literal["last", "own"] = "last",
        generic_descriptions: Sequence[str] = (),
        fg_des: bool = True,
        detector: Detector | MapDetector | None = None,
        position_prompt: bool = True,
        layers: Sequence[int] | None = None,
        n_plain: int | None = None,
        token_capture: Literal["reference", "per_layer"] = "reference",
        n_ctx: int = 12,
        kernels: Sequence[Sequence[int]] = KERNELS,
        mmci: Mapping[str, Any] | None = None,
        adapter: bool = True,
        adapter_reduction: int = 2,
        adapter_temperature: float = 0.07,
        logit_scale: float = 100.0,
        pair_norm: bool = True,
        gaussian: Mapping[str, float] | None = None,
        outside_factor: float = 0.7,
        map_norm: Literal["none", "minmax"] = "none",
        score: Literal["raw", "softmax"] = "raw",
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        area_threshold: float = 0.7,
        phrase_match: Literal["reference", "casefold"] = "reference",
        score_cut: int | None = 2,
        cells: Literal["reference", "thirds"] = "reference",
        clip_boxes: bool = False,
        training: Literal["staged", "joint"] = "staged",
        epochs: int | None = None,
        stage1_epochs: int = 15,
        stage2_epochs: int = 5,
        lr_heads: float = 1e-4,
        lr_prompts: float = 1e-3,
        lr_adapter: float = 1e-5,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        parts = {"enabled": True, "fuse": "features", **(mmci or {})}
        blur = {"kernel": 3, "sigma": 4.0, **(gaussian or {})}
        given = {"token_capture": token_capture, "phrase_match": phrase_match, "cells": cells, "score": score}
        given |= {"map_norm": map_norm, "training": training, "mmci.fuse": parts["fuse"]}
        for name, value in given.items():
            if value not in CHOICES[name]:
                raise unknown_choice(f"method.{name}", str(value), CHOICES[name])
        if wrong := [f"mmci.{key}" for key in parts if key not in ("enabled", "fuse")]:
            raise unknown_choice("key of method", wrong[0], ["mmci.enabled", "mmci.fuse"])
        if int(blur["kernel"]) % 2 == 0 or blur["sigma"] <= 0:
            raise UserError(f"method.gaussian {blur}: give an odd kernel and a sigma above 0")
        if min(n_ctx, adapter_reduction) < 1 or min(adapter_temperature, logit_scale) <= 0:
            raise UserError(
                "method: n_ctx and adapter_reduction of at least 1, adapter_temperature and logit_scale above 0"
            )
        if score_cut not in (None, "none") and (not isinstance(score_cut, int) or score_cut < 0):
            raise UserError(f"method.score_cut is {score_cut!r}: give a number of decimals, or none")

        self.texts = DefectTexts(
            descriptions,
            class_list=class_list,
            class_text=class_text,
            generic=generic_descriptions,
            fine_grained=fg_des,
        )
        self.sentences = Sentences(self.texts, n_ctx, positioned=position_prompt)
        self.detector = detector
        self.layers = backbone.checked_layers(sorted(layers or backbone.layers))
        self.n_plain = round(backbone.num_layers / 4) if n_plain is None else n_plain
        if not 0 <= self.n_plain < backbone.num_layers:
            raise UserError(f"method.n_plain is {n_plain}: {backbone.name} has {backbone.num_layers} vision blocks")
        self.token_capture, self.fuse, self.pair_norm = token_capture, parts["fuse"], pair_norm
        self.logit_scale, self.adapter_temperature = logit_scale, adapter_temperature
        self.blur, self.sigma = int(blur["kernel"]), float(blur["sigma"])
        self.outside_factor, self.map_norm, self.score_kind = outside_factor, map_norm, score
        self.box_options = {
            "box_threshold": box_threshold,
            "text_threshold": text_threshold,
            "max_area": area_threshold,
            "keep_best": True,
        }
        self.phrase_match, self.cells, self.clip_boxes = phrase_match, cells, clip_boxes
        self.score_cut = None if score_cut == "none" else score_cut
        self.joint = training == "joint"
        self.rates = {"heads": lr_heads, "prompts": lr_prompts, "adapter": lr_adapter}
        self.stage1_epochs = self._first_stage(epochs, stage1_epochs, stage2_epochs if adapter else 0)

        self.entries = self._entries()
        dim, text_width = backbone.embed_dim, backbone.text_width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.normal = PromptLearner(n_ctx, dim, text_width)
            self.abnormal = PromptLearner(n_ctx, dim, text_width)
            self.linear = nn.ModuleList([nn.Linear(backbone.width, dim) for _ in self.entries[::2]])
            count = len(self.entries[1::2]) if parts["enabled"] else 0
            self.mmci = nn.ModuleList([MMCI(backbone.width, dim, kernels) for _ in range(count)])
            self.adapter = Adapter(dim, adapter_reduction) if adapter else None
        self._merged: list[tuple[Tensor, Tensor]] | None = None  # while the learned values stand still

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def _entries(self) -> list[str]:
        """The published code's list of tokens, by name: one entry a plain layer, two (V-V, ordinary) a dual one.

        Entries at even places feed the linear heads, those at odd places MMCI. `v` is the final V-V state.
        """
        reference, names = self.token_capture == "reference", []
        for layer in self.layers:
            if layer <= self.n_plain:
                names.append("v" if reference and layer == self.n_plain else f"o{layer}")
            else:
                names += ["v" if reference else f"v{layer}", f"o{layer}"]
        return names

    def frozen_facts(self) -> dict[str, Any]:
        return {"entries": self.entries, "n_plain": self.n_plain, "cls": "projected", "capture": self.token_capture}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`cls` [M, C] (`ln_post`, projected) and the distinct entries [M, N, Dv], class token dropped."""
        clip, last = self.backbone, self.backbone.num_layers
        taps = list(dict.fromkeys([*self.layers, last]))
        out = clip.encode_image(images, layers=taps, vv_from=self.n_plain)
        dual, ordinary = dict(zip(taps, out.tokens, strict=True)), dict(zip(taps, out.ordinary, strict=True))
        kept = {"cls": out.cls}
        for name in dict.fromkeys(self.entries):
            layer = int(name[1:] or last)
            tokens = dual[layer] if name[0] == "v" else ordinary[layer]
            if name[0] == "o" and self.token_capture == "reference" and layer > self.n_plain:
                tokens = plus_next_attention(clip.visual.transformer.resblocks, tokens, layer)
            kept[name] = tokens[:, 1:]
        return kept

    def feature(self, cls: Tensor, *, adapted: bool) -> Tensor:
        """Global feature [B, C], unit norm."""
        return F.normalize(self.adapter(cls) if adapted and self.adapter is not None else cls, dim=-1)

    def heads(self, tokens: Mapping[str, Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Outputs of the heads, the linear ones first, each [branches, B, N, C], unit norm; one branch but where MMCI's
        similarities are fused."""
        outputs = [head(tokens[name].float())[None] for head, name in zip(self.linear, self.entries[::2], strict=True)]
        names = self.entries[1::2][: len(self.mmci)]
        if self.fuse == "similarities":
            outputs += [head.branches(tokens[n].float(), grid) for head, n in zip(self.mmci, names, strict=True)]
        else:
            kernels = self.merged_kernels()
            for name in dict.fromkeys(names):  # heads that see the same tokens are one convolution
                own = [kernels[i] for i, other in enumerate(names) if other == name]
                weight, bias = (torch.cat(part) for part in zip(*own, strict=True))
                outputs += [
                    out[None] for out in convolve(tokens[name].float(), grid, weight, bias).chunk(len(own), dim=-1)
                ]
        return [F.normalize(out.float(), dim=-1) for out in outputs]

    def merged_kernels(self) -> list[tuple[Tensor, Tensor]]:
        """Each MMCI head's kernels as one; without gradient merged once."""
        if torch.is_grad_enabled():
            return [head.merged() for head in self.mmci]
        if self._merged is None:
            self._merged = [head.merged() for head in self.mmci]
        return self._merged

    def forget_learned(self) -> None:
        self._merged = None

    # ---- sentences: FG-Des -------------------------------------------------------------------------------------------

    def raw_texts(
        self, categories: Sequence[str], feature: Tensor, positions: Sequence[int | None] | None = None
    ) -> list[RawTexts]:
        """Features of each image's sentences, conditioned on its global feature [B, C].

        Only those of its position where one is chosen. Images with the same sentences are encoded together.
        """
        chosen = list(positions or [None] * len(categories))
        context = {"normal": self.normal(feature), "abnormal": self.abnormal(feature)}
        rows: dict[tuple[str, int | None], list[int]] = {}
        for i, key in enumerate(zip(categories, chosen, strict=True)):
            rows.setdefault(key, []).append(i)
        texts: dict[int, RawTexts] = {}
        for (category, position), members in rows.items():
            encoded = {}
            for kind, learned in context.items():
                tree = self.sentences.tree(self.backbone, category, kind, position)
                encoded[kind] = self.backbone.encode_tree(tree, embed(self.backbone, tree, learned[members])).float()
            count = len(self.texts.states(category)[1])
            for row, i in enumerate(members):
                texts[i] = RawTexts(encoded["normal"][row], encoded["abnormal"][row].unflatten(0, (count, -1)))
        return [texts[i] for i in range(len(categories))]

    def pairs(self, texts: Sequence[RawTexts], positions: Sequence[int | None] | None = None) -> Tensor:
        """Normal and abnormal text of each image [B, 2, C]: means of unit features, over states and positions, or at one of
        the nine."""
        both = []
        for one, position in zip(texts, positions or [None] * len(texts), strict=True):
            abnormal = one.abnormal if position is None else one.abnormal[:, position : position + 1]
            means = [F.normalize(part, dim=-1).mean(dim=0) for part in (one.normal, abnormal.flatten(0, 1))]
            both.append(F.normalize(torch.stack(means), dim=-1))
        pairs = torch.stack(both)
        return pairs / 2**0.5 if self.pair_norm else pairs

    def similarity(self, feature: Tensor, pairs: Tensor) -> Tensor:
        """[B, C], [B, 2, C] -> similarities (normal, abnormal) [B, 2]."""
        return torch.einsum("bc,bkc->bk", feature, pairs)

    # ---- maps --------------------------------------------------------------------------------------------------------

    def map_logits(
        self, heads: Sequence[Tensor], pairs: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> list[Tensor]:
        """Abnormal minus normal logit of each head at every pixel [branches, B, H, W]: of two logits only the difference
        matters. Logits are upsampled, not probabilities."""
        toward = self.logit_scale * (pairs[:, 1] - pairs[:, 0])  # [B, C]
        logits = [to_grid(torch.einsum("kbnc,bc->kbn", head, toward), grid) for head in heads]
        return [upsample(one, size, align_corners=True) for one in logits]

    def smooth(self, maps: Tensor) -> Tensor:
        """Blur of maps [..., H, W]."""
        return gaussian_blur(maps, [self.blur, self.blur], [self.sigma, self.sigma])

    def joined(self, maps: Tensor) -> Tensor:
        """One map [B, H, W] of the heads' maps: each blurred, then their mean."""
        if self.map_norm == "none":
            return self.smooth(maps.mean(dim=0))  # the mean of blurred maps is the blurred mean
        smooth = self.smooth(maps)
        low, high = smooth.amin(dim=(-2, -1), keepdim=True), smooth.amax(dim=(-2, -1), keepdim=True)
        return ((smooth - low) / (high - low).clamp_min(1e-12)).mean(dim=0)

    # ---- boxes: HQ-Loc -----------------------------------------------------------------------------------------------

    def captions(self, category: str) -> tuple[str, ...]:
        words = self.texts.detector_words(category)
        return (caption_of(words, separator=self.texts.words["detector"]["separator"]),)

    def located(self, batch: Batch) -> list[Located]:
        """Boxes and positions by what the detector found in these images beforehand."""
        places = []
        for path, category in zip(batch.path, batch.category, strict=True):
            found = detections(self.found(path, self.captions(category)[0]), batch.size, **self.box_options)
            found = with_valid_phrases(found, self.texts.detector_words(category), self.phrase_match)
            best = best_box(found, self.score_cut)
            box = None if best is None else found.boxes[best]
            places.append(Located(found, position_of(box, batch.size, self.cells)))
        return places

    def located_by_map(self, heat: Tensor, detector: MapDetector) -> list[Located]:
        """Boxes of the coarse maps [B, H, W]; the best names the position."""
        places = []
        for one in heat:
            found = detector.boxes(one)
            box = found.boxes[0] if len(found) else None
            places.append(Located(found, position_of(box, (heat.shape[1], heat.shape[2]), self.cells)))
        return places

    # ---- prediction --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        tokens, size, grid = self.frozen(batch), batch.size, self.grid(batch)
        feature = self.feature(tokens["cls"].float(), adapted=True)
        heads = self.heads(tokens, grid)
        places = self.located(batch) if isinstance(self.detector, Detector) else None
        texts = self.raw_texts(batch.category, feature, None if places is None else [p.position for p in places])
        pairs = self.pairs(texts)
        heat = self.joined(probabilities(self.map_logits(heads, pairs, grid, size)))
        if isinstance(self.detector, MapDetector):
            places = self.located_by_map(heat, self.detector)
            if self.sentences.positioned:
                pairs = self.pairs(texts, [p.position for p in places])  # the rows of all nine positions are there
                heat = self.joined(probabilities(self.map_logits(heads, pairs, grid, size)))
        score = self.image_score(self.similarity(feature, pairs), heat)
        if places is None:
            return Prediction(score, heat)
        damp = [
            damped(m, p.found, self.outside_factor, clip_boxes=self.clip_boxes)
            for m, p in zip(heat, places, strict=True)
        ]
        return Prediction(score, torch.stack(damp), tuple(p.found.boxes[p.found.valid] for p in places))

    def image_score(self, similarity: Tensor, heat: Tensor) -> Tensor:
        """[B] of similarities [B, 2] and maps [B, H, W] before any box."""
        abnormal = similarity[:, 1]
        if self.score_kind == "softmax":
            abnormal = (similarity / self.adapter_temperature).softmax(dim=-1)[:, 1]
        return (abnormal + heat.flatten(1).amax(dim=1)) / 2

    def grid(self, batch: Batch) -> tuple[int, int]:
        rows, columns = (side // self.backbone.patch_size for side in batch.size)
        return rows, columns

    def labelled(self, name: str) -> str:
        """Results that the paper's detector had no part in say so."""
        if self.detector is None:
            return f"{name} (no detector)"
        return f"{name} ({self.detector.name})" if self.detector.replaces else name

    # ---- training ----------------------------------------------------------------------------------------------------

    def _first_stage(self, epochs: int | None, first: int, second: int) -> int:
        """Epochs of stage 1; a run shorter than both stages keeps their proportion, with at least one epoch each."""
        if first < 0 or second < 0 or first + second == 0:
            raise UserError(f"method.stage1_epochs {first}, stage2_epochs {second}: give numbers of epochs, not both 0")
        if epochs is None or epochs >= first + second or second == 0 or self.joint:
            return first if second else max(first, epochs or 0)
        if first == 0:
            return 0
        if epochs == 1:
            log.warning("epochs=1 trains the heads alone: the adapter keeps its random start; give 2 or more")
            return 1
        return min(max(1, round(epochs * first / (first + second))), epochs - 1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Heads, prompts and adapter, each with its rate."""
        wanted = set() if self.stage1_epochs == 0 else {"focal", "dice"}
        if wanted and not wanted & self.terms.keys():
            raise UserError("the loss has neither 'focal' nor 'dice', which stage 1 needs: choose loss=filo")
        if self.adapter is not None and "image" not in self.terms:
            raise UserError(
                "the loss has no term 'image', which trains the adapter: choose loss=filo, or method.adapter=false"
            )
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in self.rates}
        for name, parameter in self.learnable().items():
            kind = {"normal": "prompts", "abnormal": "prompts", "adapter": "adapter"}.get(name.split(".")[0], "heads")
            groups[kind].append(parameter)
        return [{"params": members, "lr": self.rates[kind]} for kind, members in groups.items() if members]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.joint:
            return {**self.map_terms(batch, adapted=True), **self.image_term(batch, through_text=True)}
        if self.current_epoch < self.stage1_epochs or self.adapter is None:
            return self.map_terms(batch, adapted=False)
        return self.image_term(batch, through_text=False)

    def map_terms(self, batch: Batch, *, adapted: bool) -> dict[str, Tensor]:
        """Stage 1: focal and dice of each head's map, over all nine positions."""
        if not {"focal", "dice"} & self.terms.keys():
            return {}
        tokens, mask, grid = self.frozen(batch), self.training_mask(batch), self.grid(batch)
        feature = self.feature(tokens["cls"].float(), adapted=adapted)
        pairs = self.pairs(self.raw_texts(batch.category, feature))
        logits = self.map_logits(self.heads(tokens, grid), pairs, grid, (mask.shape[-2], mask.shape[-1]))
        normal = probabilities([-one for one in logits])  # near 0 it has digits that 1 minus the abnormal one lost
        return self.map_losses(probabilities(logits), mask, normal=normal)

    def image_term(self, batch: Batch, *, through_text: bool) -> dict[str, Tensor]:
        """Stage 2: cross entropy of the adapted global feature. Its sentences follow it, without gradient when staged."""
        if "image" not in self.terms:
            return {}
        feature = self.feature(self.frozen(batch)["cls"].float(), adapted=True)
        with torch.set_grad_enabled(through_text and torch.is_grad_enabled()):
            pairs = self.pairs(self.raw_texts(batch.category, feature))
        prob = (self.similarity(feature, pairs) / self.adapter_temperature).softmax(dim=-1)[:, 1]
        return {"image": self.terms["image"](prob, batch.label).mean()}

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def official_name(self, name: str) -> str:
        part, _, rest = name.partition(".")
        if part in ("normal", "abnormal"):
            return f"{part}_prompt_learner.{rest}"
        if part == "linear":
            return f"decoder_linear.fc.{rest}"
        if part == "mmci":
            head, _, kernel, kind = rest.split(".")
            return f"decoder_cov.fc_{kernel}.{head}.{kind}"
        return name

    def official_state(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """The published files hold one entry, `filo`: the whole model."""
        return state.get("filo", state)

    def official_ignored(self, key: str) -> bool:
        """The frozen towers, twice over, and parts that an ablation leaves out."""
        unused = () if self.mmci else ("decoder_cov.",)
        unused += () if self.adapter is not None else ("adapter.",)
        return key.startswith(("clip_model.", "text_encoder.", *unused))
