"""The checkpoints of AA-CLIP's program: `text_adapter.pth` and `image_adapter.pth`, in one folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.aaclip.method import AACLIP
from anomaly_vlm.methods.base.published import Files, PublishedLayout


def key(method: AACLIP, name: str) -> str:
    """The key of a learnable parameter: that of its file, behind the file's entry (`text_adapter`, `image_adapter`)."""
    parts = name.split(".")
    if parts[0] == "text":
        number = parts[2] if parts[1] == "adapters" else str(len(method.text.adapters) if method.text else 0)
        return f"text_adapter.{number}.fc.0.weight"
    fc = "fc.0" if method.projection_relu else "fc"
    if parts[0] == "image_adapters":
        return f"image_adapter.layer_adapters.{parts[1]}.fc.0.weight"
    return f"image_adapter.seg_proj.{parts[1]}.{fc}.weight" if len(parts) > 1 else f"image_adapter.det_proj.{fc}.weight"


def whole(method: AACLIP, files: Files) -> dict[str, Tensor]:
    """The method's state from both files; the range of the training images is in none of them."""
    tensors: dict[str, Any] = {}
    for name, content in files.items():
        for entry in ("text_adapter", "image_adapter"):
            inner = content.get(entry, content if name.startswith(entry) else {})
            tensors |= {f"{entry}.{k}": v for k, v in inner.items() if isinstance(v, Tensor)}
    keys = {name: key(method, name) for name in method.learnable()}
    missing = [k for k in keys.values() if k not in tensors]
    surplus = [k for k in tensors if k not in keys.values() and (method.text or not k.startswith("text_adapter"))]
    if missing or surplus:
        listed = [f"missing {k}" for k in missing[:4]] + [f"surplus {k}" for k in surplus[:4]]
        raise UserError(
            f"the published files do not fit {type(method).__name__} as configured: {'; '.join(listed)}: give a folder with"
            " text_adapter.pth and one image_adapter.pth, and the options that they were trained with"
        )
    state = {name: tensors[k].to(torch.float32) for name, k in keys.items()}
    return {**state, "range": torch.full((4,), torch.nan)}


LAYOUT = PublishedLayout(key=key, whole=whole)
