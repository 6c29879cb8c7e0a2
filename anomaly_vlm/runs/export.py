"""A trained method as a file of its own: an image in, its score and map out, for programs without torch and this suite."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.data.transforms import read_sample, resize_image
from anomaly_vlm.data.types import Batch, Preprocess
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.adaclip import AdaCLIP
from anomaly_vlm.methods.base.images import preprocess_of
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.runs.exported_files import FORMATS
from anomaly_vlm.runs.onnx_batches import IMAGE, MAP, SCORE, Pixels, batched

CHECKED = 20  # images on which the file is compared with the method
BATCH = 8  # of the comparison; the last one is smaller
TOLERANCE = 1e-4
REASONS = {  # why some methods cannot be one graph
    "anovl": "it adapts itself to each test image by steps of gradient descent",
    "filo": "it asks a detector about each image",
    "saa": "it asks a detector and a segmenter about each image",
    "vl4ad": "its images keep their own sizes",
}


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: The file.
        difference: Largest difference between its scores and maps and those of the method, on `images` images.
        images: Number of images that were compared.
    """

    path: Path
    difference: float
    images: int


class ImageToMap(nn.Module):
    """A method for one category as a function of pixels alone.

    Args:
        method: The method.
        category: What the images show.
        preprocess: Its transform; resizing stays outside, so that images come at the input's size.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, method: AnomalyMethod, category: str, preprocess: Preprocess) -> None:
        super().__init__()
        self.method, self.category = method, category
        self.register_buffer("pixel_mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score `[1]` and map `[1, H, W]` of an RGB image `[1, 3, S, S]` with values in [0, 1]."""
        pixels = (image - self.pixel_mean) / self.pixel_std
        batch = Batch(
            unencoded=pixels,
            label=torch.full((1,), -1),
            mask=None,
            category=[self.category],
            path=["image"],
            index=torch.zeros(1, dtype=torch.long),
            key=[None],
        )
        prediction = self.method.predict(batch)
        return prediction.score, prediction.map


def export(
    method: AnomalyMethod, path: Path, *, category: str, pixels: Pixels = "float", form: str = "onnx"
) -> Exported:
    """Writes a method as a file of its own, and compares the file with the method.

    Text features, learned weights and the memory of reference images become constants. The metadata of the file say which
    method it is, what it was made for, and the threshold of the checkpoint where it has one.

    Args:
        method: A loaded method.
        path: The file; OpenVINO's weights lie beside it as `.bin`.
        category: What the images show: the texts, the memory and the threshold are those of this category.
        pixels: What the input holds, see `batched`.
        form: One of `FORMATS`.

    Raises:
        UserError: The packages are missing, the method cannot be exported, or the file gives other numbers.
    """
    onnx = _onnx()
    name = str(method.run_record.get("config", {}).get("name", type(method).__name__))
    preprocess = preprocess_of(method)
    reason = _obstacle(method, name)
    if reason or preprocess.fit != "square":
        raise UserError(f"{name} cannot be exported: {reason or 'its images keep their own shape'}")
    graph = ImageToMap(method.eval(), category, preprocess).eval()
    images = _images(preprocess)
    with torch.no_grad():
        expected = [[part.numpy() for part in graph(image)] for image in images]  # also fills what the method keeps
        content = _graph_of(graph, images[0], name)
    height, width = expected[0][1].shape[1:]
    model = batched(
        onnx.load_from_string(content), side=preprocess.size, map_size=(int(height), int(width)), pixels=pixels
    )
    made = FORMATS[form][1](model, _facts(method, name, category, preprocess, pixels))
    worst = 0.0
    for start in range(0, len(images), BATCH):
        batch = torch.cat(images[start : start + BATCH])
        given = (batch * 255).round().to(torch.uint8) if pixels == "uint8" else batch
        found = made.run(given.numpy())
        wanted = [np.concatenate(part) for part in zip(*expected[start : start + BATCH], strict=True)]
        worst = max(worst, *(float(np.abs(one - other).max()) for one, other in zip(found, wanted, strict=True)))
    if not worst <= TOLERANCE:
        raise UserError(
            f"{name} cannot be exported: the file differs from the method by {worst:.2g} (at most {TOLERANCE:g} is allowed),"
            " as something of it depends on the image in a way that a graph does not hold"
        )
    made.write(path)
    return Exported(path, worst, len(images))


def _obstacle(method: AnomalyMethod, name: str) -> str:
    """Why a method cannot be one graph; an empty text where nothing is known to be in the way."""
    if method.is_transductive:
        return "it scores all images of a category together"
    if isinstance(method, AdaCLIP) and method.hsf.enabled:
        return "k-means in its semantic fusion takes as many rounds as an image needs (method.hsf.enabled=false: none)"
    return REASONS.get(name, "")


def _onnx() -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"export needs the package {error.name}: install the extra 'export'") from error
    return onnx


def _graph_of(graph: ImageToMap, image: Tensor, name: str) -> bytes:
    """The ONNX file of a graph, without what torch's exporter prints on its way."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph, (image,), input_names=[IMAGE], output_names=[SCORE, MAP], dynamo=True, verbose=False
            )
            assert program is not None
            content: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # the exporter fails in many ways, with pages of text
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:160]
        raise UserError(f"{name} cannot be exported: its prediction is no fixed graph of the image ({line})") from error
    finally:
        logging.disable(level)
    return content


def _images(preprocess: Preprocess) -> list[Tensor]:
    """Drawn pictures `[1, 3, S, S]` in [0, 1], at the size of the input."""
    samples = ProceduralSource(seed=1, test_count=CHECKED).samples("test")[:CHECKED]
    return [resize_image(read_sample(sample)[0], preprocess)[None].float() / 255 for sample in samples]


def _facts(method: AnomalyMethod, name: str, category: str, preprocess: Preprocess, pixels: Pixels) -> dict[str, Any]:
    threshold = method.decision_thresholds.get(category)
    decision = {}
    if threshold is not None:
        decision = {
            "threshold": threshold.score,
            "pixel_threshold": threshold.pixel,
            "threshold_rule": threshold.summary,
        }
    return {
        "method": name,
        "backbone": method.backbone.describe(),
        "category": category,
        "pixels": pixels,
        "input": f"RGB in {'[0, 1]' if pixels == 'float' else '0 to 255'}, {preprocess.size} x {preprocess.size}"
        f" ({preprocess.interpolation}, antialiased)",
        "size": preprocess.size,
        **decision,
    }
