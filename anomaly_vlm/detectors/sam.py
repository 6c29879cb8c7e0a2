"""Segment Anything in transformers: masks for boxes, one each."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomaly_vlm.caching.folders import AUTO, cache_folder
from anomaly_vlm.detectors.grounding import fingerprint, locate
from anomaly_vlm.detectors.pixels import MEAN, STD
from anomaly_vlm.detectors.segmenter import Segmenter
from anomaly_vlm.detectors.stores import MaskStore
from anomaly_vlm.errors import UserError

WAYS_OUT = "give a local folder in transformers' layout with segmenter.weights=FOLDER, or take segmenter=contrast"


class SamSegmenter(Segmenter):
    """SAM (Kirillov et al., ICCV 2023, arXiv 2304.02643) with box prompts, a single mask a box.

    Args:
        weights: Hub id, or a folder in transformers' layout.
        device: `auto`: a GPU where there is one.
        boxes_at_a_time: Boxes at a time of an image; bounds the memory. The image is encoded once.
        folder: Keeps masks on disk; None: not.

    Raises:
        UserError: The weights are neither here nor at the hub.
    """

    name: ClassVar[str] = "sam"

    def __init__(
        self, *, weights: str, device: str = "auto", boxes_at_a_time: int = 16, folder: str | None = None
    ) -> None:
        super().__init__(
            None if folder is None else MaskStore(cache_folder("detections") / "masks" if folder == AUTO else folder)
        )
        if boxes_at_a_time < 1:
            raise UserError(f"segmenter.boxes_at_a_time is {boxes_at_a_time}: give a whole number from 1 on")
        self.weights = locate(weights, kind="segmenter", ways_out=WAYS_OUT, patterns=["*.json", "*.safetensors"])
        if not (self.weights / "config.json").is_file():
            raise UserError(f"segmenter weights '{weights}' are no folder with a config.json: {WAYS_OUT}")
        self.boxes_at_a_time = boxes_at_a_time
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The network on its device, read once."""
        if self._model is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the package's own deprecations
                self._model = self.load().to(self.device).eval().requires_grad_(False)
        return self._model

    def load(self) -> Any:
        """The network with its weights, on the CPU."""
        from transformers import SamConfig, SamModel
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            config = SamConfig.from_pretrained(self.weights)
            loaded: Any = SamModel.from_pretrained(self.weights, config=config, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:120]
            raise UserError(f"segmenter weights '{self.weights}' do not load ({reason}): {WAYS_OUT}") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        model, about = loaded
        if missing := sorted(about["missing_keys"]):
            raise UserError(f"segmenter weights '{self.weights}' lack {missing[0]} and so are no SAM: {WAYS_OUT}")
        return model

    def identity(self) -> dict[str, Any]:
        """What the masks depend on: the weights."""
        return {"segmenter": self.name, "weights": fingerprint(self.weights)}

    def look(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Masks bool [n, H, W] of boxes [n, 4] in an image uint8 [3, H, W]."""
        size, side = (image.shape[1], image.shape[2]), self.model.config.vision_config.image_size
        pixels, small = as_input(image, side)
        scale = boxes.new_tensor([small[1] / size[1], small[0] / size[0]] * 2)
        masks = []
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            embeddings = self.model.get_image_embeddings(pixels[None].to(self.device))
            for part in (boxes * scale).split(self.boxes_at_a_time):
                out = self.model(
                    image_embeddings=embeddings, input_boxes=part[None].to(self.device), multimask_output=False
                )
                masks.append(as_masks(out.pred_masks[0], side, small, size).cpu())
        return torch.cat(masks)


def as_input(image: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """uint8 [3, H, W] -> normalised [3, side, side], and the (height, width) of its upper left part that is image.

    The longer side is resized to `side` (bilinear, antialiased, PIL), the rest is zero, as SAM has it.
    """
    height, width = image.shape[1:]
    scale = side / max(height, width)
    small = (int(height * scale + 0.5), int(width * scale + 0.5))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(small[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return F.pad((pixels - mean) / std, (0, side - small[1], 0, side - small[0])), small


def as_masks(logits: Tensor, side: int, small: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mask logits [n, 1, h, w] of the padded square -> bool [n, H, W] of the image of `size` (height, width)."""
    whole = F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=False)
    part = whole[..., : small[0], : small[1]]
    return F.interpolate(part, size, mode="bilinear", align_corners=False)[:, 0] > 0
