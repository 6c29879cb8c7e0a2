"""Grounding DINO in transformers: the default backend. Batches images of different captions exactly."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly_vlm.detectors.grounding import GroundingDetector
from anomaly_vlm.detectors.key_map import converted, read_original, sizes
from anomaly_vlm.errors import UserError


class TransformersDetector(GroundingDetector):
    """`weights`: a hub id or folder in transformers' layout, or a `.pth` file of the original code, FiLo's included."""

    name: ClassVar[str] = "transformers"

    def load(self) -> Any:
        """Builds the model with its weights, on the CPU.

        Raises:
            UserError: The weights do not load.
        """
        from transformers import GroundingDinoForObjectDetection
        from transformers.utils import logging

        if self.weights.is_file():
            return from_original(read_original(self.weights), str(self.weights))
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return GroundingDinoForObjectDetection.from_pretrained(self.weights)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:120]
            raise UserError(
                f"detector weights '{self.weights}' do not load ({reason}): give a Grounding DINO model"
            ) from error
        finally:
            if shown:
                logging.enable_progress_bar()

    def run(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, T] and boxes [B, Q, 4] of images [B, 3, H, W] with a caption each."""
        words = self.tokenizer(captions, padding="longest", return_tensors="pt").to(self.device)
        out = self.model(pixel_values=images, **words)
        return out.logits, out.pred_boxes


def from_original(state: dict[str, Tensor], source: str) -> Any:
    """The port with the weights of an original checkpoint, built to the sizes that its tensors have.

    Raises:
        UserError: keys do not fit.
    """
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    facts = sizes(state)
    names = [f"stage{i}" for i in range(2, len(facts["swin"]["depths"]) + 1)]
    swin = SwinConfig(**{**facts.pop("swin"), "out_features": names})
    text = BertConfig(**facts.pop("text"))
    with torch.random.fork_rng(devices=[]):
        model = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=swin, text_config=text, **facts))
    model.load_state_dict(converted(state, model.state_dict(), source), strict=False)
    return model
