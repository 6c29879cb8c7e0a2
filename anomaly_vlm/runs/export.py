"""A fitted or trained method as an ONNX file: an image in, score and map out, texts and memories folded in as constants."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_bytes
from anomaly_vlm.methods.base.detections import UsesDetections
from anomaly_vlm.methods.base.images import preprocess_of
from anomaly_vlm.methods.base.method import AnomalyMethod

OPSET = 18
TOLERANCE = 1e-4  # of scores and maps between torch and onnxruntime


@dataclass
class FixedBatch(Batch):
    """A batch whose size is a pair of numbers also while the method is traced."""

    side: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.side, self.side


class OneCategory(nn.Module):
    """A method for images of one category: RGB in [0, 1] `[1, 3, S, S]` -> score `[1]`, map `[1, H, W]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, method: AnomalyMethod, category: str) -> None:
        super().__init__()
        self.method, self.category, preprocess = method, category, preprocess_of(method)
        self.side = preprocess.size
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The method's prediction."""
        batch = FixedBatch(
            unencoded=(image - self.mean) / self.std,
            label=torch.full((1,), -1),
            mask=None,
            category=[self.category],
            path=["image"],
            index=torch.zeros(1, dtype=torch.int64),
            key=[None],
            side=self.side,
        )
        prediction = self.method.predict(batch)
        return prediction.score.float(), prediction.map.float()


def export_onnx(method: AnomalyMethod, category: str, path: Path, *, images: int = 20) -> float:
    """Writes an ONNX file and compares it with the method.

    Args:
        method: With its learned weights.
        category: What the images show.
        path: The file to write; its folder is there.
        images: Number of random images to compare on.

    Returns:
        The largest difference of scores and maps.

    Raises:
        UserError: The method cannot be exported, and why; or the file computes something else.
    """
    ort = _runtime()
    name = str(method.run_record["config"]["name"])
    _check(method, name)
    model = OneCategory(method.cpu().eval(), category).eval()
    example = torch.rand(1, 3, model.side, model.side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(example)  # texts are encoded now, so that they are constants
    buffer: Any = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constants in the traced graph, which are meant
            torch.onnx.export(
                model,
                (example,),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["score", "map"],
            )
    except Exception as error:  # the exporter raises many classes
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{name} cannot be exported to ONNX ({type(error).__name__}: {reason}): use 'predict'"
        ) from error
    content = _with_record(buffer.getvalue(), _record(method, name, category))
    difference = _difference(model, ort.InferenceSession(content, providers=["CPUExecutionProvider"]), images)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{name}: the exported graph differs from the method by {difference:.2g} (allowed: {TOLERANCE:g}) on random images,"
            " as it depends on them in ways that a graph does not hold: use 'predict'"
        )
    with whole_bytes(path) as file:
        file.write(content)
    return difference


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "export needs onnx and onnxruntime: install the extra 'export' (make: EXTRAS=export)"
        ) from error
    return onnxruntime


def _check(method: AnomalyMethod, name: str) -> None:
    """Raises a `UserError` where a graph of one image cannot be what the method computes."""
    if method.is_transductive:
        raise UserError(f"{name} compares the images of a set with each other: one image alone has no score to export")
    if isinstance(method, UsesDetections) and method.detector is not None:
        raise UserError(f"{name} asks a detector about every image, which is no part of a graph: use 'predict'")
    if preprocess_of(method).fit != "square":
        raise UserError(f"{name} takes images of any size (pixels.fit={preprocess_of(method).fit}): use 'predict'")


def _record(method: AnomalyMethod, name: str, category: str) -> dict[str, Any]:
    threshold = method.decision_thresholds.get(category)
    preprocess = preprocess_of(method)
    return {
        "method": name,
        "backbone": method.backbone.describe(),
        "category": category,
        "image_size": preprocess.size,
        "interpolation": preprocess.interpolation,
        "threshold": None if threshold is None else {**threshold.to_record(), "summary": threshold.summary},
    }


def _with_record(content: bytes, record: dict[str, Any]) -> bytes:
    import onnx

    graph = onnx.load_from_string(content)
    entry = graph.metadata_props.add()
    entry.key, entry.value = "anomaly_vlm", json.dumps(record)
    return bytes(graph.SerializeToString())


def _difference(model: OneCategory, session: Any, images: int) -> float:
    generator, largest = torch.Generator().manual_seed(1), 0.0
    for i in range(images):
        noise = torch.rand(1, 3, model.side // (1 + i % 8) + 1, model.side // (1 + i % 8) + 1, generator=generator)
        image = nn.functional.interpolate(noise, size=(model.side, model.side), mode="bilinear")  # coarse to fine
        with torch.inference_mode():
            expected = model(image)
        for ours, theirs in zip(expected, session.run(None, {"image": image.numpy()}), strict=True):
            largest = max(largest, float(np.abs(ours.numpy() - theirs).max()))
    return largest
