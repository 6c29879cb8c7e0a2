"""WinCLIP and WinCLIP+: CLIP compares windows of the image with texts, and with windows of a few normal images.

Jeong, Zou, Kim, Zhang, Ravichandran, Dabeer, "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023,
arXiv 2303.14814. The authors published no code. `variant="paper"`, the default, computes the paper's equations as the
library anomalib does. `variant="published"` is the public re-implementation (caoyunkang/WinClip) on which PromptAD and
FineGrainedAD build; its numbers stay below the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.category_memory import MemoryMethod
from anomaly_vlm.methods.shared.maps import swap_red_blue, to_grid, upsample
from anomaly_vlm.methods.shared.patch_memory import PatchMemory, nearest_distance
from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.methods.shared.sentences import fill_templates
from anomaly_vlm.methods.winclip.windows import Windows, arithmetic_mean, harmonic_mean, windows_of
from anomaly_vlm.options import PositiveFloat, PositiveInt
from anomaly_vlm.texts import load_texts

TEMPLATES = {"paper": "anomalib", "published": "caoyunkang"}  # variant -> its templates in the table of texts
TEMPERATURES = {"paper": 0.07, "published": 0.01}
PATCHES = "patches"  # name of the patch tokens, beside `windows_S` for each size S


class WinCLIP(MemoryMethod):
    """Zero-shot without references (WinCLIP), few-shot with them (WinCLIP+). Nothing is learned.

    Args:
        backbone: Frozen towers. The paper has ViT-B/16+ at 240 px, trained on LAION-400M.
        texts: Table of states and templates: its name, a JSON file, or the table itself.
        variant: Which scores are computed. `paper`: harmonic means over windows and scales, the score of the class token,
            and distances of patches and windows to the references. `published`: harmonic means of normality, distances of
            windows alone, and the maximum of the map as image score.
        scales: Different sides of the windows in patches. The published code's library has the whole grid as a third.
        temperature: Divides the similarities. None: 0.07 for `paper`, 0.01 for `published`.
        gallery_lag: Which references the first window of each size but the first is compared with. False: those of its own
            size. True: those of the size before, an accident of the published code, which its numbers contain. None: True
            for `published`, False for `paper`.
        bgr_test: Whether red and blue of test images are swapped, as in the published code, which reads references as RGB.
            The tokens of swapped images are not cached.
        eval_size: Side of the maps in pixels (published code: 400). None: that of the input.
        base: See `MemoryMethod`.

    Raises:
        UserError: A scale comes twice or there is none, or `gallery_lag` is true with variant `paper`.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: str | Mapping[str, Any] = "winclip_prompts",
        variant: Literal["paper", "published"] = "paper",
        scales: Sequence[PositiveInt] = (2, 3),
        temperature: PositiveFloat | None = None,
        gallery_lag: bool | None = None,
        bgr_test: bool = False,
        eval_size: PositiveInt | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if not scales or len(set(scales)) < len(scales):
            raise UserError(f"method.scales is {list(scales)}: give different window sides in patches, such as [2, 3]")
        if gallery_lag and variant == "paper":
            raise UserError(
                "method.gallery_lag is true, an accident of variant published: choose that variant, or null"
            )
        self.texts, self.variant, self.scales = load_texts(texts), variant, tuple(scales)
        self.temperature = TEMPERATURES[variant] if temperature is None else temperature
        self.gallery_lag = variant == "published" if gallery_lag is None else gallery_lag
        self.bgr_test, self.eval_size = bgr_test, eval_size
        self._text_features: dict[str, Tensor] = {}  # category -> [2, C]
        self._windows: dict[tuple[int, tuple[int, int], torch.device], Windows] = {}

    # ---- towers: frozen ----------------------------------------------------------------------------------------------

    def windows(self, size: int, grid: tuple[int, int]) -> Windows:
        """The windows of a size on a grid of rows and columns.

        Raises:
            UserError: The grid is smaller than a window.
        """
        if size > min(grid):
            raise UserError(
                f"method.scales has a window of {size} x {size} patches, the image has {grid[0]} x {grid[1]}: give smaller"
                " ones, or a larger image_size"
            )
        key = (size, grid, self.device)
        if key not in self._windows:
            self._windows[key] = Windows(*(tensor.to(self.device) for tensor in windows_of(size, grid)))
        return self._windows[key]

    def cache_key(self) -> dict[str, Any] | None:
        return None if self.bgr_test else {"winclip": list(self.scales)}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]` as a whole and window by window.

        Returns:
            `cls` `[M, C]`, `patches` `[M, N, Dv]` after `ln_post`, and for each size S `windows_S` `[M, W, C]`. None of them
            is normalised, and the patches are not projected.
        """
        clip = self.backbone
        whole = clip.encode_image(images, layers=[clip.num_layers])
        tokens = {"cls": whole.cls, PATCHES: clip.visual.ln_post(whole.patches[0])}
        for size in self.scales:
            short = clip.encode_image(images, token_sets=self.windows(size, whole.grid).tokens)
            tokens[f"windows_{size}"] = short.cls.view(len(images), -1, short.cls.shape[-1])
        return tokens

    def sentences(self, category: str) -> tuple[list[str], list[str]]:
        """The normal and the anomalous sentences about a category."""
        templates = self.texts["templates"][TEMPLATES[self.variant]]
        normal, anomalous = (
            fill_templates(templates, self.texts[f"{side}_states"], category) for side in ("normal", "anomalous")
        )
        return normal, anomalous

    @torch.no_grad()
    def text_features(self, category: str) -> Tensor:
        """Normal and anomalous text feature `[2, C]` of a category, not normalised; encoded once."""
        if category not in self._text_features:
            sides = self.sentences(category)
            self._text_features[category] = self.cached_text_features(sides, lambda: self.encode_sides(sides))
        return self._text_features[category].to(self.device)

    def encode_sides(self, sides: Sequence[Sequence[str]]) -> Tensor:
        """Encodes lists of sentences to the means `[sides, C]` of their features, which are not normalised."""
        features = self.backbone.encode_sentences([sentence for side in sides for sentence in side])
        return torch.stack([rows.mean(dim=0) for rows in torch.split(features, [len(side) for side in sides])])

    def memory_token_names(self) -> list[str]:
        patches = [PATCHES] if self.variant == "paper" else []  # the published code compares windows alone
        return [*(f"windows_{size}" for size in self.scales), *patches]

    # ---- scores ------------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        if self.bgr_test:
            batch = replace(batch, unencoded=swap_red_blue(batch.image, self.backbone.mean, self.backbone.std))
        tokens = {name: value.float() for name, value in self.frozen_tokens(batch).items()}
        grid = self.backbone.grid_of(batch.size)
        size = batch.size if self.eval_size is None else (self.eval_size, self.eval_size)
        score = torch.empty(len(batch), device=self.device)
        maps = torch.empty(len(batch), *size, device=self.device)
        compare = self.compare_paper if self.variant == "paper" else self.compare_published
        for category in dict.fromkeys(batch.category):
            rows = [i for i, name in enumerate(batch.category) if name == category]
            chosen = {name: value[rows] for name, value in tokens.items()}
            texts = F.normalize(self.text_features(category), dim=-1)
            image, patches = compare(chosen, texts, self.memory(category), grid)
            maps[rows] = upsample(to_grid(patches, grid), size, align_corners=False)
            score[rows] = maps[rows].flatten(1).amax(dim=1) if image is None else image.float()
        return Prediction(score, maps)

    def abnormal(self, features: Tensor, texts: Tensor) -> Tensor:
        """Probability of the anomalous side.

        Args:
            features: `[..., C]`, any norm.
            texts: Normal and anomalous text feature `[2, C]`, unit norm.

        Returns:
            `[...]`, in [0, 1].
        """
        return (product(F.normalize(features, dim=-1), texts.T) / self.temperature).softmax(dim=-1)[..., 1]

    def compare_paper(
        self,
        tokens: Mapping[str, Tensor],
        texts: Tensor,
        memory: Mapping[str, PatchMemory] | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """The paper's scores of images of one category (sections 4.2 and 4.3).

        Args:
            tokens: As `encode_frozen` returns them.
            texts: Normal and anomalous text feature `[2, C]`, unit norm.
            memory: The category's memory by the name of its tokens; None for zero-shot.
            grid: Rows and columns of patches.

        Returns:
            Image scores `[B]` and scores `[B, N]` of the patches. The image counts as one more scale of the text map.
        """
        image = self.abnormal(tokens["cls"], texts)
        maps = self.text_maps(tokens, texts, grid)
        scales = [image[:, None].expand_as(maps[0]), *maps]
        text_map = len(scales) / torch.stack([1 / scale for scale in scales]).sum(dim=0)
        if memory is None:
            return image, text_map
        visual_map = torch.stack(self.association_maps(tokens, memory, grid)).mean(dim=0)
        return (image + visual_map.amax(dim=1)) / 2, (text_map + visual_map) / 2

    def text_maps(self, tokens: Mapping[str, Tensor], texts: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Anomalous probabilities `[B, N]` of the patches, a map for each window size."""
        return [
            harmonic_mean(self.abnormal(tokens[f"windows_{size}"], texts), self.windows(size, grid).cover)
            for size in self.scales
        ]

    def association_maps(
        self, tokens: Mapping[str, Tensor], memory: Mapping[str, PatchMemory], grid: tuple[int, int]
    ) -> list[Tensor]:
        """Distances `[B, N]` of the patches to the references: those of the patches themselves, and of each window size."""
        maps = [memory[PATCHES](tokens[PATCHES])]
        for size in self.scales:
            name = f"windows_{size}"
            maps.append(harmonic_mean(memory[name](tokens[name]), self.windows(size, grid).cover))
        return maps

    def compare_published(
        self,
        tokens: Mapping[str, Tensor],
        texts: Tensor,
        memory: Mapping[str, PatchMemory] | None,
        grid: tuple[int, int],
    ) -> tuple[None, Tensor]:
        """The published code's scores; arguments as of `compare_paper`.

        Returns:
            None, since an image's score is the maximum of its upsampled map, and the harmonic mean `[B, N]` of text map and
            visual map, without the factor 2.
        """
        text_map = self.normality_map(tokens, texts, grid)
        visual_map = text_map if memory is None else self.window_distance_map(tokens, memory, grid)
        return None, 1 / (1 / text_map + 1 / visual_map)

    def normality_map(self, tokens: Mapping[str, Tensor], texts: Tensor, grid: tuple[int, int]) -> Tensor:
        """1 minus the harmonic mean of the normal probabilities over windows and sizes: the published text map `[B, N]`."""
        inverse = [
            arithmetic_mean(
                1 / (1 - self.abnormal(tokens[f"windows_{size}"], texts)).clamp_min(1e-30),
                self.windows(size, grid).cover,
            )
            for size in self.scales
        ]
        return 1 - 1 / torch.stack(inverse).mean(dim=0)

    def window_distance_map(
        self, tokens: Mapping[str, Tensor], memory: Mapping[str, PatchMemory], grid: tuple[int, int]
    ) -> Tensor:
        """Mean distances of the windows to the references: the published visual map `[B, N]`."""
        maps, previous = [], None
        for size in self.scales:
            name = f"windows_{size}"
            distances = memory[name](tokens[name])
            if self.gallery_lag and previous is not None:  # the gallery is exchanged one window too late
                distances = distances.clone()
                distances[:, 0] = nearest_distance(tokens[name][:, 0], previous.bank, memory_mb=self.memory_mb)
            maps.append(arithmetic_mean(distances, self.windows(size, grid).cover))
            previous = memory[name]
        return torch.stack(maps).mean(dim=0)
