"""WinCLIP and WinCLIP+: CLIP asked about windows of the image, and windows compared with those of a few normal images.

Jeong, Zou, Kim, Zhang, Ravichandran, Dabeer, "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023,
arXiv 2303.14814. There is no official code. `variant: anomalib` follows the paper's equations as the library anomalib does;
`variant: cao` is the public re-implementation on which PromptAD and FineGrainedAD build (it stays below the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.category_memory import MemoryMethod
from anomaly_vlm.methods.shared.maps import fill_templates, swap_red_blue, to_grid, upsample
from anomaly_vlm.methods.shared.patch_memory import PatchMemory, nearest_distance

VARIANTS = {"anomalib": "anomalib", "cao": "caoyunkang"}  # variant -> its templates in the table
PATCHES = "patches"


class Windows(NamedTuple):
    """All windows of one size on a grid of patches.

    Attributes:
        keep: [W, 1 + size^2] indices into the tokens (0 is the class token), windows row by row.
        cover: [N, W] 1.0 where a window contains a patch.
    """

    keep: Tensor
    cover: Tensor


def windows_of(size: int, grid: tuple[int, int]) -> Windows:
    """The windows of `size` x `size` patches at every place, stride 1."""
    rows, columns = grid
    numbers = torch.arange(rows * columns).view(grid)
    inside = numbers.unfold(0, size, 1).unfold(1, size, 1).flatten(2).flatten(0, 1)  # [W, size^2]
    cover = torch.zeros(rows * columns, len(inside))
    cover[inside.T, torch.arange(len(inside))] = 1.0
    return Windows(F.pad(inside + 1, (1, 0)), cover)


def harmonic_mean(values: Tensor, cover: Tensor) -> Tensor:
    """Per patch [B, N] the harmonic mean of the windows [B, W] that contain it; next to 0 where one of them is 0."""
    inverse = torch.einsum("nw,bw->bn", cover, (1 / values).clamp_max(torch.finfo(values.dtype).max / 1e6))
    return cover.sum(dim=1) / inverse


def arithmetic_mean(values: Tensor, cover: Tensor) -> Tensor:
    """Per patch [B, N] the mean of the windows [B, W] that contain it."""
    return torch.einsum("nw,bw->bn", cover, values) / cover.sum(dim=1)


class WinCLIP(MemoryMethod):
    """Training-free; without references zero-shot (WinCLIP), with references few-shot (WinCLIP+).

    Args:
        backbone: frozen towers (paper: ViT-B/16+ at 240 px, LAION-400M).
        texts: table of states and templates (`winclip_prompts`).
        variant: `anomalib` (the paper's equations) or `cao`.
        scales: window sides in patches (2 and 3). `cao` alone may have the whole grid as a last one, its library default.
        temperature: divides similarities; None: 0.07 (`anomalib`) or 0.01 (`cao`, and the paper's learned one).
        gallery_lag: the first window of each further size is compared with the references of the size before, an accident of
            `cao`; None: as the variant does.
        bgr_test: test images with red and blue swapped, as `cao` reads them; their tokens are not cached.
        eval_size: side of the maps in pixels; None: that of the input (`cao`: 400).
        base: see `MemoryMethod`.

    Reference: sections 4.1-4.3.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: Mapping[str, Any],
        variant: Literal["anomalib", "cao"] = "anomalib",
        scales: Sequence[int] = (2, 3),
        temperature: float | None = None,
        gallery_lag: bool | None = None,
        bgr_test: bool = False,
        eval_size: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if variant not in VARIANTS:
            raise unknown_choice("method.variant", str(variant), VARIANTS)
        if isinstance(scales, int) or not scales or min(scales) < 1 or len(set(scales)) < len(scales):
            raise UserError(f"method.scales is {scales}: give different window sides in patches, such as [2, 3]")
        if temperature is not None and not temperature > 0:
            raise UserError(
                f"method.temperature is {temperature}: give a number above 0, or null for the variant's own"
            )
        if gallery_lag and variant != "cao":
            raise UserError("method.gallery_lag=true is an accident of variant cao: choose that variant, or null")
        if eval_size is not None and eval_size < 1:
            raise UserError(f"method.eval_size is {eval_size}: give the side of the maps in pixels, or null")
        self.texts, self.variant, self.scales = texts, variant, tuple(scales)
        self.temperature = (0.07 if variant == "anomalib" else 0.01) if temperature is None else temperature
        self.gallery_lag = variant == "cao" if gallery_lag is None else gallery_lag
        self.bgr_test, self.eval_size = bgr_test, eval_size
        self._prompts: dict[str, Tensor] = {}
        self._windows: dict[tuple[int, tuple[int, int], torch.device], Windows] = {}

    # ---- towers: frozen ----------------------------------------------------------------------------------------------

    def windows(self, size: int, grid: tuple[int, int]) -> Windows:
        """The windows of a size, or a `UserError` where the grid is smaller."""
        if size > min(grid):
            raise UserError(
                f"method.scales has a window of {size} x {size} patches, the image has {grid[0]} x {grid[1]}: give smaller"
                " ones, or a larger image_size"
            )
        key = (size, grid, self.device)
        if key not in self._windows:
            self._windows[key] = Windows(*(part.to(self.device) for part in windows_of(size, grid)))
        return self._windows[key]

    def cache_key(self) -> dict[str, Any] | None:
        return None if self.bgr_test else {"winclip": list(self.scales)}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """`cls` [M, C]; `patches` [M, N, Dv] after `ln_post`, not projected; `windows_S` [M, W, C]. None normalised."""
        clip = self.backbone
        whole = clip.encode_image(images, layers=[clip.num_layers])
        tokens = {"cls": whole.cls, PATCHES: clip.visual.ln_post(whole.patches[0])}
        for size in self.scales:
            short = clip.encode_image(images, keep=self.windows(size, whole.grid).keep)
            tokens[f"windows_{size}"] = short.cls.unflatten(0, (len(images), -1))
        return tokens

    @torch.no_grad()
    def prompts(self, category: str) -> Tensor:
        """Mean raw text features [2, C] of all normal and all anomalous sentences on a category; cached like tokens."""
        if category not in self._prompts:
            templates = self.texts["templates"][VARIANTS[self.variant]]
            sides = [
                fill_templates(templates, self.texts[name], category) for name in ("normal_states", "anomalous_states")
            ]
            self._prompts[category] = self.cached_text_features(sides, lambda: self.encode_prompts(sides))
        return self._prompts[category].to(self.device)

    def encode_prompts(self, sides: Sequence[Sequence[str]]) -> Tensor:
        """Mean raw text features [sides, C] of lists of sentences."""
        features = self.backbone.encode_sentences([sentence for side in sides for sentence in side])
        return torch.stack([part.mean(dim=0) for part in features.split([len(side) for side in sides])])

    def memory_token_names(self) -> list[str]:
        patches = [PATCHES] if self.variant == "anomalib" else []  # `cao` compares windows alone
        return [*(f"windows_{size}" for size in self.scales), *patches]

    # ---- scores ------------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        if self.bgr_test:
            batch = replace(batch, unencoded=swap_red_blue(batch.image, self.backbone.mean, self.backbone.std))
        tokens = {name: value.float() for name, value in self.frozen_tokens(batch).items()}
        grid = (batch.size[0] // self.backbone.patch_size, batch.size[1] // self.backbone.patch_size)
        size = batch.size if self.eval_size is None else (self.eval_size, self.eval_size)
        score = torch.empty(len(batch), device=self.device)
        maps = torch.empty(len(batch), *size, device=self.device)
        for category in dict.fromkeys(batch.category):
            rows = [i for i, name in enumerate(batch.category) if name == category]
            judge = self.judge_anomalib if self.variant == "anomalib" else self.judge_cao
            some = {name: value[rows] for name, value in tokens.items()}
            image, patches = judge(some, F.normalize(self.prompts(category), dim=-1), self.memory(category), grid)
            maps[rows] = upsample(to_grid(patches, grid), size, align_corners=False)
            score[rows] = maps[rows].flatten(1).amax(dim=1) if image is None else image
        return Prediction(score, maps)

    def abnormal(self, features: Tensor, prompts: Tensor) -> Tensor:
        """Probability [...] of the anomalous side for features [..., C]."""
        return (F.normalize(features, dim=-1) @ prompts.T / self.temperature).softmax(dim=-1)[..., 1]

    def judge_anomalib(
        self,
        tokens: Mapping[str, Tensor],
        prompts: Tensor,
        memory: Mapping[str, PatchMemory] | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Image scores [B] and maps [B, N]: harmonic over windows and over scales (the image is one), associations added."""
        image = self.abnormal(tokens["cls"], prompts)
        texts = self.text_maps(tokens, prompts, grid)
        parts = [image[:, None].expand_as(texts[0]), *texts]
        said = len(parts) / torch.stack([1 / part for part in parts]).sum(dim=0)
        if memory is None:
            return image, said
        seen = torch.stack(self.association_maps(tokens, memory, grid)).mean(dim=0)
        return (image + seen.amax(dim=1)) / 2, (said + seen) / 2

    def text_maps(self, tokens: Mapping[str, Tensor], prompts: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """What the texts say of the patches [B, N], one map a window size."""
        return [
            harmonic_mean(self.abnormal(tokens[f"windows_{size}"], prompts), self.windows(size, grid).cover)
            for size in self.scales
        ]

    def association_maps(
        self, tokens: Mapping[str, Tensor], memory: Mapping[str, PatchMemory], grid: tuple[int, int]
    ) -> list[Tensor]:
        """How far the patches [B, N] lie from the references: as patches, and by windows of each size."""
        maps = [memory[PATCHES](tokens[PATCHES])]
        for size in self.scales:
            name = f"windows_{size}"
            maps.append(harmonic_mean(memory[name](tokens[name]), self.windows(size, grid).cover))
        return maps

    def judge_cao(
        self,
        tokens: Mapping[str, Tensor],
        prompts: Tensor,
        memory: Mapping[str, PatchMemory] | None,
        grid: tuple[int, int],
    ) -> tuple[None, Tensor]:
        """Maps [B, N]: the harmonic mean of *normality* turned over, windows' associations averaged, both fused; an image's
        score is the maximum of its upsampled map (None here)."""
        said = self.textual_map(tokens, prompts, grid)
        seen = said if memory is None else self.visual_map(tokens, memory, grid)
        return None, 1 / (1 / said + 1 / seen)

    def textual_map(self, tokens: Mapping[str, Tensor], prompts: Tensor, grid: tuple[int, int]) -> Tensor:
        """`cao`: what the texts say of the patches [B, N]."""
        inverse = [
            arithmetic_mean(
                1 / (1 - self.abnormal(tokens[f"windows_{size}"], prompts)).clamp_min(1e-30),
                self.windows(size, grid).cover,
            )
            for size in self.scales
        ]
        return 1 - 1 / torch.stack(inverse).mean(dim=0)

    def visual_map(
        self, tokens: Mapping[str, Tensor], memory: Mapping[str, PatchMemory], grid: tuple[int, int]
    ) -> Tensor:
        """`cao`: how far the patches [B, N] lie from the references, by windows alone."""
        maps, before = [], None
        for size in self.scales:
            name = f"windows_{size}"
            far = memory[name](tokens[name])
            if self.gallery_lag and before is not None:  # the gallery is exchanged one window too late
                far = far.clone()
                far[:, 0] = nearest_distance(tokens[name][:, 0], before.bank, memory_mb=self.memory_mb)
            maps.append(arithmetic_mean(far, self.windows(size, grid).cover))
            before = memory[name]
        return torch.stack(maps).mean(dim=0)
