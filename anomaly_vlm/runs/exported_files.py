"""What a graph is written as: an ONNX file, or OpenVINO's pair of files, each run once by its own runtime before."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_bytes


class ExportedFile(Protocol):
    """A graph as its runtime runs it."""

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Scores `[B]` and maps `[B, H, W]` of images `[B, 3, S, S]`."""

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""


class OnnxFile:
    """A graph for onnxruntime.

    Args:
        model: An ONNX model of `batched`.
        facts: Its metadata by name; what is no text becomes JSON.
    """

    def __init__(self, model: Any, facts: Mapping[str, Any]) -> None:
        import onnxruntime

        for key, value in facts.items():
            model.metadata_props.add(key=key, value=_text(value))
        self._content: bytes = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(self._content, providers=["CPUExecutionProvider"])

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Scores `[B]` and maps `[B, H, W]` of images `[B, 3, S, S]`."""
        found: list[np.ndarray] = self._session.run(["score", "map"], {"image": images})
        return found

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        with whole_bytes(path) as file:
            file.write(self._content)


class OpenVinoFiles:
    """A graph for OpenVINO, in float32: `NAME.xml` and the weights beside it, `NAME.bin`.

    Args:
        model: An ONNX model of `batched`, which OpenVINO's own converter reads.
        facts: Its metadata by name, kept under `anomaly_vlm` in the model's runtime information.

    Raises:
        UserError: The package is missing.
    """

    def __init__(self, model: Any, facts: Mapping[str, Any]) -> None:
        try:
            import openvino
        except ImportError as error:
            raise UserError("format=openvino needs the package openvino: install the extra 'openvino'") from error
        self._save = openvino.save_model
        core = openvino.Core()
        self._model = core.read_model(model=model.SerializeToString())
        for key, value in facts.items():
            self._model.set_rt_info(_text(value), ["anomaly_vlm", key])
        # some processors would compute in bfloat16 by themselves: not what is compared
        self._compiled = core.compile_model(self._model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Scores `[B]` and maps `[B, H, W]` of images `[B, 3, S, S]`."""
        found = self._compiled({"image": images})
        return [found["score"], found["map"]]

    def write(self, path: Path) -> None:
        """Writes both files, each whole or not at all."""
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "model.xml"
            self._save(self._model, made, compress_to_fp16=False)
            for suffix in (".bin", ".xml"):  # the one that names the other comes last
                with whole_bytes(path.with_suffix(suffix)) as file:
                    file.write(made.with_suffix(suffix).read_bytes())


FORMATS: dict[str, tuple[str, type[OnnxFile | OpenVinoFiles]]] = {  # name -> suffix and kind
    "onnx": (".onnx", OnnxFile),
    "openvino": (".xml", OpenVinoFiles),
}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
