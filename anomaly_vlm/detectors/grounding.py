"""What both Grounding DINO backends share: finding weights and tokenizer, captions, pixels, batches."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly_vlm.backbone.weights import hub_answers
from anomaly_vlm.caching.folders import cache_folder
from anomaly_vlm.detectors.base import Detector, Picture
from anomaly_vlm.detectors.boxes import MAX_TOKENS, Queries, queries_of
from anomaly_vlm.detectors.pixels import as_tensor
from anomaly_vlm.detectors.stores import DetectionStore
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import expanded

WAYS_OUT = (
    "give a local folder or file with detector.weights=PATH, boxes from a file with detector=file detector.path=FILE,"
    " or take detector=components"
)
PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.bin"]


class GroundingDetector(Detector):
    """Grounding DINO (Liu et al., ECCV 2024, arXiv 2303.05499).

    Args:
        weights: What the backend reads.
        tokenizer: Hub id or folder of BERT's tokenizer, where the weights bring none.
        short_side: Short side of the input in pixels (FiLo 518, package 800); the longer side is at most 1333.
        device: `auto`: a GPU where there is one.
        batch_size: Images that run together.
        folder: Keeps answers on disk; None: not.
        keep_score: See `DetectionStore`.
        keep_most: See `DetectionStore`.

    Raises:
        UserError: Weights or tokenizer are neither here nor at the hub.
    """

    name: ClassVar[str]

    def __init__(
        self,
        *,
        weights: str,
        tokenizer: str | None = None,
        short_side: int = 800,
        device: str = "auto",
        batch_size: int = 1,
        folder: str | None = None,
        keep_score: float = 0.05,
        keep_most: int = 50,
    ) -> None:
        place = None if folder is None else cache_folder("detections", folder)
        super().__init__(None if place is None else DetectionStore(place, keep_score=keep_score, keep_most=keep_most))
        if short_side < 1 or batch_size < 1:
            raise UserError(f"detector: short_side {short_side}, batch_size {batch_size}: give whole numbers from 1 on")
        self.weights, self.short_side, self.batch_size = locate(weights), short_side, batch_size
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        beside = self.weights if self.weights.is_dir() else None
        self.tokenizer_place = (
            beside if tokenizer is None and beside is not None else locate(tokenizer or "bert-base-uncased")
        )
        if not any((self.tokenizer_place / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            raise UserError(
                f"'{self.tokenizer_place}' holds no tokenizer (tokenizer.json or vocab.txt): give BERT's with"
                " detector.tokenizer=FOLDER"
            )
        self._tokenizer: Any = None
        self._model: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, read once."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_place)
        return self._tokenizer

    @property
    def model(self) -> Any:
        """The network on its device, read once."""
        if self._model is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the packages' own deprecations
                self._model = self.load().to(self.device).eval().requires_grad_(False)
        return self._model

    @abstractmethod
    def load(self) -> Any:
        """The network with its weights, on the CPU."""

    @abstractmethod
    def run(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token logits [B, Q, 256 or T] and boxes [B, Q, 4] of normalised images [B, 3, h, w] with a caption each."""

    def identity(self) -> dict[str, Any]:
        """What the answers depend on: the backend, its weights and the size of the input."""
        return {"detector": self.name, "weights": fingerprint(self.weights), "short_side": self.short_side}

    def cost(self) -> str:
        """What a run costs, in words, or the empty string where it is cheap."""
        return "on the CPU: 247 GFLOP an image at 518 px, many seconds each" if self.device.type == "cpu" else ""

    def check_captions(self, captions: Sequence[str]) -> None:
        """Checks that each caption fits into the text encoder.

        Raises:
            UserError: A caption has too many tokens.
        """
        for caption in dict.fromkeys(captions):
            if (count := len(self.tokenizer(caption)["input_ids"])) > MAX_TOKENS:
                raise UserError(
                    f"the caption '{caption[:60]}...' has {count} tokens, the detector reads {MAX_TOKENS}: give fewer or"
                    " shorter descriptions"
                )

    def look(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        """Runs the model on the pictures, in batches whose images may run together."""
        self.check_captions(captions)
        found: dict[int, Queries] = {}
        images = [as_tensor(picture.pixels(), self.short_side) for picture in pictures]
        groups: dict[Any, list[int]] = {}
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            groups.setdefault((image.shape, self.together(caption)), []).append(i)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                rows = group[start : start + self.batch_size]
                with torch.inference_mode(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    logits, boxes = self.run(
                        torch.stack([images[i] for i in rows]).to(self.device), [captions[i] for i in rows]
                    )
                for place, i in enumerate(rows):
                    pieces = self.tokenizer.convert_ids_to_tokens(self.tokenizer(captions[i])["input_ids"])
                    found[i] = queries_of(logits[place], boxes[place], pieces, pictures[i].name)
        return [found[i] for i in range(len(pictures))]

    def together(self, caption: str) -> str:
        """Images of the same size run in one batch where this is the same; padding would change the answers."""
        return ""


def locate(
    weights: str, *, kind: str = "detector", ways_out: str = WAYS_OUT, patterns: Sequence[str] = PATTERNS
) -> Path:
    """A local file or folder: as named, or a hub repository's snapshot, from the cache or fetched once.

    Args:
        weights: Local file or folder, or hub id.
        kind: What is looked for, in words for the error.
        ways_out: What the error advises.
        patterns: Glob patterns of the repository's files to fetch.

    Raises:
        UserError: It is nowhere.
    """
    path = expanded(weights)
    if path.exists():
        return path
    if path.suffix or weights.startswith((".", "/", "~")) or weights.count("/") > 1:
        raise UserError(f"{kind} weights '{weights}': no such file or folder: {ways_out}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(weights, local_files_only=True, allow_patterns=list(patterns)))
    except Exception:  # not in the cache; the client reports it by several classes
        reason = "it is not in the local cache and the model hub cannot be reached"
    if hub_answers():
        try:
            return Path(snapshot_download(weights, allow_patterns=list(patterns)))
        except Exception as error:  # network, access, or no such repository
            reason = f"the model hub says: {str(error).splitlines()[0][:120]}"
    raise UserError(f"{kind} '{weights}': {reason}: {ways_out}")


@cache
def fingerprint(path: Path) -> str:
    """Digest of a weights file, or of the weights in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
