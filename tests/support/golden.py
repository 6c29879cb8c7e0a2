"""Golden fixtures: numbers that the published implementations gave, with a ledger of what a test read and compared.

The folder is `ANOMALY_VLM_GOLDEN`, by default the repository's own `tests/golden`. Everything a test builds (backbone,
sizes, options) comes from the settings beside the tensors, so that fixtures with other settings run with the same tests.
"""

from __future__ import annotations

import copy
import json
import lzma
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone, load_backbone

ROOT = Path(os.environ.get("ANOMALY_VLM_GOLDEN", Path(__file__).parents[1] / "golden"))
RTOL, ATOL = 1e-4, 1e-5
LEDGERS: dict[str, tuple[int, int]] = {}  # fixture -> compared, total; printed at the end of the run


def fixture_paths(method: str, *, settings: bool = True) -> list[Path]:
    """The settings files of a method's fixtures (or, of formulas on given tensors, where they would be); none at all is an
    error, never a skip."""
    kind = "json" if settings else "safetensors"
    found = sorted(path.with_suffix(".json") for path in (ROOT / method).glob(f"*.{kind}"))
    if not found:
        raise FileNotFoundError(f"no golden fixture of {method} in {ROOT}")
    return found


def merged(options: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`options` updated key by key, nested ones too."""
    out = copy.deepcopy(options)
    for key, value in update.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def unpacked(stored: Tensor, *, dtype: str, shape: list[int]) -> Tensor:
    """A tensor that a small copy of a fixture holds as LZMA of its bytes: all first ones, then all second ones, ..."""
    kind = getattr(torch, dtype)
    raw = lzma.decompress(stored.numpy().tobytes())
    planes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(kind.itemsize, -1)
    return planes.T.contiguous().view(kind).view(shape)


class Fixture:
    """One fixture: settings, tensors (half precision widened to float32), and the ledger of keys."""

    def __init__(self, path: Path) -> None:
        self.name = f"{path.parent.name}/{path.stem}"
        self.settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        tensors = load_file(path.with_suffix(".safetensors"))
        with safe_open(path.with_suffix(".safetensors"), "pt") as file:
            metadata = file.metadata() or {}
        for key, form in json.loads(metadata.get("packed", "{}")).items():
            tensors[key] = unpacked(tensors[key], **form)
        self.tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        self.stride: dict[str, int] = json.loads(
            metadata.get("stride", "{}")
        )  # maps stored at every n-th row and column
        self.read: set[str] = set()
        self.compared: set[str] = set()

    def options(self, group: str = "") -> dict[str, Any]:
        """Options of a group of tensors: `options`, then those of `x`, then of `x/y`."""
        options = self.settings["options"]
        parts = [part for part in group.split("/") if part]
        for end in range(1, len(parts) + 1):
            options = merged(options, self.settings.get("groups", {}).get("/".join(parts[:end]), {}))
        return options

    def has(self, key: str) -> bool:
        return key in self.tensors

    def input(self, key: str) -> Tensor:
        """A tensor that the test uses as input."""
        self.read.add(key)
        return self.tensors[key]

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): self.input(key) for key in self.tensors if key.startswith(prefix)}

    def check(self, key: str, actual: Tensor, *, rtol: float = RTOL, atol: float = ATOL) -> None:
        """Compares with the tensor under `key`; of a thinned map, the rows and columns that are stored."""
        expected, step = self.tensors[key], self.stride.get(key, 1)
        actual = actual[..., ::step, ::step] if step > 1 else actual
        torch.testing.assert_close(
            actual.detach().to(expected.dtype), expected, rtol=rtol, atol=atol, msg=lambda m: f"{self.name} {key}: {m}"
        )
        self.compared.add(key)

    def mark(self, key: str) -> None:
        """Counts a key as compared that the test compares in a way of its own (sets, partitions)."""
        self.compared.add(key)

    def finish(self, ignored: dict[str, str] | None = None) -> None:
        """Fails on keys that were neither read nor compared; `ignored` names keys with the reason."""
        left = sorted(set(self.tensors) - self.read - self.compared - set(ignored or {}))
        LEDGERS[self.name] = (len(self.compared), len(self.tensors) - len(self.read - self.compared))
        assert not left, f"{self.name}: neither read nor compared: {left}"


@cache
def _backbone_files(name: str) -> tuple[dict[str, Any], str]:
    path = ROOT / "backbone" / f"{name}.json"
    return json.loads(path.read_text()), str(path.with_suffix(".safetensors"))


def golden_backbone(name: str, **options: Any) -> ClipBackbone:
    """The fixture folder's backbone; options as of `load_backbone`."""
    architecture, weights = _backbone_files(name)
    return load_backbone(name, architecture=architecture, weights=weights, **options)
