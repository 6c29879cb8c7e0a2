"""AnoVL: V-V attention in every block, sentences of the right domain, and a few gradient steps on each test image.

Deng, Zhang, Bao, Li, "Adapting Vision-Language Models for Unified Zero-shot Anomaly Localization", arXiv 2308.15939;
published code, state of 2023-09-07. Training-free: nothing is learned before the test, nothing is stored.

The defaults are the published code's on MVTec AD but for one: `optimizer_state: fresh` starts AdamW anew for each image,
where the code lets its moments run on over the images of a category (`carry`), so that its maps depend on their order. The
code's program for VisA is `tiling: auto` with `augment_views: false` (and `pixels.fit: short_side`); its own adapter there,
a plain linear layer on joined maps, is left out: the adapter on sentences serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.anovl.views import augmented_views, joined, squares_of
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.texts import table_key

TEXTURES = ("carpet", "leather", "grid", "tile", "wood")  # MVTec AD's
TABLE = ("normal_states", "anomalous_states", "templates", "object_templates", "texture_templates")


# ---- test-time adaptation --------------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """What a category is compared with, unit norm.

    Attributes:
        prototypes: [2, C] of the normal and the anomalous state. keys: [2M, C] all sentences, normal ones first.
    """

    prototypes: Tensor
    keys: Tensor


class Start(NamedTuple):
    """What the adaptation to images starts from: `weight` [B, 2M, C], `bias` [B, 2M], `noise` [steps, B, P, C]."""

    weight: Tensor
    bias: Tensor
    noise: Tensor


class TextAdapter(nn.Module):
    """`x' = x / 2 + A(x) / 2` with `A(x) = tanh(W x / |x| + b) K`: patches, by half made of the sentences' features. B
    images have a `W` and `b` each.

    Args:
        keys: K [2M, C], the sentences' features. start: the first `W` and `b`.
    """

    def __init__(self, keys: Tensor, start: Start) -> None:
        super().__init__()
        self.keys = keys
        self.weight, self.bias = nn.Parameter(start.weight.clone()), nn.Parameter(start.bias.clone())

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, C], not normalised -> the same."""
        said = torch.baddbmm(self.bias[:, None], F.normalize(patches, dim=-1), self.weight.transpose(1, 2))
        return 0.5 * patches + 0.5 * said.tanh() @ self.keys


def log_probabilities(features: Tensor, prototypes: Tensor) -> Tensor:
    """Logarithms [..., 2] of how normal and how anomalous features [..., C] are, without temperature."""
    return (F.normalize(features, dim=-1) @ prototypes.T).log_softmax(dim=-1)


def adapt(
    adapter: TextAdapter, optimizer: torch.optim.Optimizer, patches: Tensor, noise: Tensor, texts: Texts
) -> Tensor:
    """Gradient steps on `adapter`: patches become certain and normal, patches with noise anomalous.

    Args:
        patches: [B, P, C], not normalised. noise: [steps, B, P, C], added to them.

    Returns:
        The loss of each image before each step [steps, B]: mean entropy of the patches, plus half of the mean cross entropy
        of the noisy ones as anomalous and of the clean ones as normal.
    """
    losses = []
    for added in noise:
        both = log_probabilities(adapter(torch.cat([patches, patches + added], dim=1)), texts.prototypes)
        clean, noisy = both.chunk(2, dim=1)  # [B, P, 2] each
        entropy = -(clean.exp() * clean).sum(dim=-1)
        loss = entropy.mean(dim=1) + 0.5 * (-noisy[..., 1] - clean[..., 0]).mean(dim=1)
        optimizer.zero_grad()
        loss.sum().backward()  # the images share no parameter
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


# ---- the method ------------------------------------------------------------------------------------------------------


class AnoVL(FrozenTokens):
    """Training-free: V-V patches against sentences, adapted to each image; the image score is a mean over 22 views.

    Maps and scores lie close to 0.5, as no temperature divides the similarities. The adaptation changes the map alone.

    Args:
        backbone: frozen towers (paper: ViT-B/16+ at 240 px, LAION-400M, antialiased bicubic position grid).
        texts: table of states and templates (`anovl_prompts`).
        texture_categories: categories with the templates on textures and surfaces; the others have those on objects.
        vv_blocks: last vision blocks that run the V-V path; `all`, or their number.
        temperature: divides similarities in scores and maps, for display (1); the adaptation knows none.
        smooth_kernel: side of the mean filter on the grid of patches, odd (3); 1: none.
        augment_views: the image score is the mean over 22 views (the code on MVTec AD); False: of the image alone.
        adapt: adapts to each test image.
        adapt_steps, adapt_lr: AdamW's steps (5) and rate (1e-3) on each image.
        noise_std: standard deviation of the noise on patch features (0.055).
        optimizer_state: `fresh`: each image for itself, whatever comes before it; `carry`: AdamW's moments run on over the
            images of a category in their order, as published (one process only).
        tiling: `auto`: images that are not square are taken in squares of their shorter side, and the maps averaged where
            these overlap (the code on VisA, for images up to twice as wide as high); the squares of an image are adapted to
            together. `off`: square images only.
        base: see `AnomalyMethod`. First weights and noise come from (seed, index of the image).

    Reference: arXiv 2308.15939; published code, state of 2023-09-07.
    """

    color_range = "per_image"

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: Mapping[str, Any],
        texture_categories: Sequence[str] = TEXTURES,
        vv_blocks: int | Literal["all"] = "all",
        temperature: float = 1.0,
        smooth_kernel: int = 3,
        augment_views: bool = True,
        adapt: bool = True,
        adapt_steps: int = 5,
        adapt_lr: float = 1e-3,
        noise_std: float = 0.055,
        optimizer_state: Literal["fresh", "carry"] = "fresh",
        tiling: Literal["off", "auto"] = "off",
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if missing := [name for name in TABLE if not texts.get(name)]:
            raise UserError(f"table of texts has no '{missing[0]}': give a table in the form of anovl_prompts.json")
        for domain in ("object_templates", "texture_templates"):
            if unknown := [name for name in texts[domain] if name not in texts["templates"]]:
                raise unknown_choice(f"list of templates in {domain}", str(unknown[0]), texts["templates"])
        dual = backbone.num_layers if vv_blocks == "all" else vv_blocks
        if isinstance(dual, bool) or not isinstance(dual, int) or not 0 <= dual <= backbone.num_layers:
            raise UserError(
                f"method.vv_blocks is {vv_blocks!r}: give all, or 0 to {backbone.num_layers} ({backbone.name})"
            )
        for name, value in (("temperature", temperature), ("adapt_lr", adapt_lr)):
            if not value > 0:
                raise UserError(f"method.{name} is {value}: give a number above 0")
        if smooth_kernel < 1 or smooth_kernel % 2 == 0:
            raise UserError(
                f"method.smooth_kernel is {smooth_kernel}: give an odd number of patches, 1 for no smoothing"
            )
        if adapt_steps < 1 or noise_std < 0:
            raise UserError(
                f"method.adapt_steps {adapt_steps}, noise_std {noise_std}: give at least 1 step (none: method.adapt=false)"
                " and a deviation of at least 0"
            )
        for name, chosen, known in (
            ("optimizer_state", optimizer_state, ("fresh", "carry")),
            ("tiling", tiling, ("auto", "off")),
        ):
            if chosen not in known:
                raise unknown_choice(f"method.{name}", str(chosen), known)
        self.table, self.textures = texts, {table_key(name) for name in texture_categories}
        self.vv_from, self.augment_views = backbone.num_layers - dual, augment_views
        self.temperature, self.smooth_kernel = temperature, smooth_kernel
        self.adapt, self.adapt_steps, self.adapt_lr, self.noise_std = adapt, adapt_steps, adapt_lr, noise_std
        self.carry, self.tiling = adapt and optimizer_state == "carry", tiling == "auto"
        self._texts: dict[str, Texts] = {}
        self._carried: dict[str, tuple[TextAdapter, torch.optim.Optimizer]] = {}  # by category
        self._found: dict[tuple[int, str], Tensor] = {}  # `carry`: an image that comes again keeps its map

    def display_name(self, name: str) -> str:
        return f"{name}, optimiser carried from image to image" if self.carry else name

    def setup(self, stage: str) -> None:
        if self.carry and self.trainer.world_size > 1:
            raise UserError(
                f"method.optimizer_state=carry goes through the images in order, here are {self.trainer.world_size}"
                " processes: set trainer.devices=1, or method.optimizer_state=fresh"
            )

    def invalidate_caches(self) -> None:
        """A new pass over the images: nothing is carried over from the last one."""
        self._carried, self._found = {}, {}

    # ---- towers: frozen ----------------------------------------------------------------------------------------------

    def squares(self, size: tuple[int, int]) -> list[tuple[slice, slice]]:
        """The squares of an image of (height, width) that go through the tower."""
        patch = self.backbone.patch_size
        if size[0] != size[1] and not self.tiling:
            raise UserError(
                f"images of {size[0]}x{size[1]} pixels with method.tiling=off, which takes square ones: set"
                " method.tiling=auto or pixels.fit=square"
            )
        if min(size) % patch:
            raise UserError(
                f"images of {size[0]}x{size[1]} pixels: the shorter side must be a multiple of the patch size {patch}: set"
                " pixels.fit=short_side"
            )
        return squares_of(size)

    def cache_key(self) -> dict[str, Any]:
        return {"anovl": {"vv_from": self.vv_from, "views": self.augment_views, "tiling": self.tiling}}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Of the T squares of each image: `cls` [M, T, V, C] of all views, unit norm; `patches` [M, T, N, C] of the V-V
        path, not normalised. The views of one square go through the tower together, on the ordinary path alone."""
        clip = self.backbone
        parts = torch.stack([images[(..., *at)] for at in self.squares((images.shape[-2], images.shape[-1]))], dim=1)
        squares = parts.flatten(0, 1)  # [M T, 3, S, S]
        whole = clip.encode_image(squares, layers=[clip.num_layers], vv_from=self.vv_from)
        cls = whole.cls[:, None]
        if self.augment_views:
            views = [clip.encode_image(augmented_views(square[None])[0, 1:]).cls for square in squares]
            cls = torch.cat([cls, torch.stack(views)], dim=1)
        tokens = {"cls": F.normalize(cls.float(), dim=-1).to(cls.dtype), "patches": clip.project(whole.patches[0])}
        return {name: value.unflatten(0, parts.shape[:2]) for name, value in tokens.items()}

    def sentences(self, category: str) -> list[list[str]]:
        """All normal and all anomalous sentences on a category, templates outermost."""
        key = table_key(category)
        word = self.table.get("rename", {}).get(key, category)
        lists = self.table["texture_templates" if key in self.textures else "object_templates"]
        templates = [template for name in lists for template in self.table["templates"][name]]
        sides = (self.table["normal_states"], self.table["anomalous_states"])
        return [[template.format(state.format(word)) for template in templates for state in states] for states in sides]

    @torch.no_grad()
    def texts(self, category: str) -> Texts:
        """A category's features; a prototype is the mean of features that are *not* normalised (code)."""
        if category not in self._texts:
            sides = self.sentences(category)
            every = [sentence for side in sides for sentence in side]
            raw = self.cached_text_features(sides, lambda: self.backbone.encode_sentences(every))
            means = torch.stack([part.mean(dim=0) for part in raw.to(self.device).split([len(side) for side in sides])])
            self._texts[category] = Texts(F.normalize(means, dim=-1), F.normalize(raw.to(self.device), dim=-1))
        return Texts(*(part.to(self.device) for part in self._texts[category]))

    # ---- scores ------------------------------------------------------------------------------------------------------

    def abnormal(self, features: Tensor, texts: Texts) -> Tensor:
        """Probability [...] of the anomalous state for features [..., C]."""
        return (F.normalize(features, dim=-1) @ texts.prototypes.T / self.temperature).softmax(dim=-1)[..., 1]

    def predict(self, batch: Batch) -> Prediction:
        tokens = self.frozen_tokens(batch)
        self.squares(batch.size)
        score = torch.empty(len(batch), device=self.device)
        maps = torch.empty(len(batch), *batch.size, device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # probabilities close to 0.5 need their digits
            for category in dict.fromkeys(batch.category):
                rows = [i for i, name in enumerate(batch.category) if name == category]
                texts, patches = self.texts(category), tokens["patches"][rows].float()
                score[rows] = self.abnormal(tokens["cls"][rows].float(), texts).flatten(1).mean(dim=1)
                maps[rows] = self.maps(self.patch_prob(patches, texts, batch, rows), batch.size)
        return Prediction(score, maps)

    def maps(self, prob: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps [B, H, W] from the probabilities [B, T, N] of the patches of T squares: mean filter, upsampled, joined."""
        side, reach = min(size), self.smooth_kernel // 2
        grid = to_grid(prob, (side // self.backbone.patch_size,) * 2)
        wide = F.pad(grid, (reach,) * 4, mode="replicate")
        return joined(
            upsample(F.avg_pool2d(wide, self.smooth_kernel, stride=1), (side, side), align_corners=True), size
        )

    def patch_prob(self, patches: Tensor, texts: Texts, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Anomalous probability [B, T, N] of the patches [B, T, N, C] of the batch's `rows`, all of one category."""
        if not self.adapt:
            return self.abnormal(patches, texts)
        indices = batch.index[rows].tolist()
        if not self.carry:
            return self.abnormal(self.adapted(patches, texts, indices), texts)
        found = []
        for one, index, row in zip(patches, indices, rows, strict=True):
            key = (index, batch.path[row])
            if key not in self._found:
                self._found[key] = self.abnormal(self.adapted(one[None], texts, [index], batch.category[row]), texts)[0]
            found.append(self._found[key])
        return torch.stack(found)

    def start(self, indices: Sequence[int], patches: int, texts: Texts) -> Start:
        """First weights (uniform, as a linear layer's) and noise of all steps, by (seed, index of the image) alone."""
        keys, width = texts.keys.shape
        bound, drawn = width**-0.5, []
        for index in indices:
            random = derived_generator(self.seed, index)
            weight, bias = (random.uniform(-bound, bound, shape) for shape in ((keys, width), (keys,)))
            noise = random.normal(0.0, self.noise_std, (self.adapt_steps, patches, width))
            drawn.append([torch.from_numpy(part).to(self.device, torch.float32) for part in (weight, bias, noise)])
        weights, biases, noises = zip(*drawn, strict=True)
        return Start(torch.stack(weights), torch.stack(biases), torch.stack(noises, dim=1))

    def adapted(self, patches: Tensor, texts: Texts, indices: Sequence[int], carried: str | None = None) -> Tensor:
        """Patches [B, T, N, C] as the adapter gives them after its steps on each image.

        Args:
            carried: category whose optimiser goes on (then B is 1); None: a new one for each image.
        """
        with torch.inference_mode(False), torch.enable_grad():  # an evaluation runs without gradient
            x = patches.flatten(1, 2).clone()
            texts = Texts(*(part.clone() for part in texts))
            adapter, optimizer, noise = self.begin(self.start(indices, x.shape[1], texts), texts, carried)
            adapt(adapter, optimizer, x, noise, texts)
            return adapter(x).detach().view_as(patches)

    def begin(
        self, start: Start, texts: Texts, carried: str | None = None
    ) -> tuple[TextAdapter, torch.optim.Optimizer, Tensor]:
        """Adapter and optimiser at the start, and the noise to come; of a category with a `carried` optimiser, that one."""
        if carried in self._carried:
            adapter, optimizer = self._carried[carried]
            with torch.no_grad():
                adapter.weight.copy_(start.weight)
                adapter.bias.copy_(start.bias)
            return adapter, optimizer, start.noise
        adapter = TextAdapter(texts.keys, start)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=self.adapt_lr)
        if carried is not None:
            self._carried[carried] = adapter, optimizer
        return adapter, optimizer, start.noise
