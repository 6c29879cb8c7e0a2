"""What the tests of both nano models share."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import open_clip
import pytest
from safetensors.torch import load_file

from anomaly_vlm.nano import loop


def plain_open_clip(architecture: dict[str, Any], file: Path) -> open_clip.CLIP:
    """The lines of the model cards in docs/: the file in plain open_clip."""
    state = load_file(file)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    ids, rows, other = (state.pop(f"token_embedding.{name}") for name in ("ids", "rows", "fallback"))
    table = rows[ids == other].repeat(49408, 1)
    table[ids.long()] = rows
    model = open_clip.CLIP(**architecture).eval()
    model.load_state_dict({**state, "token_embedding.weight": table})
    return model


def card_lines(card: Path) -> dict[str, Any]:
    """Runs the first block of code of a model card in docs/; returns its names."""
    lines = card.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    last = next(i for i in range(first, len(lines)) if lines[i] and not lines[i].startswith("    "))
    names: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(lines[first:last])), names)
    return names


def break_off(patch: pytest.MonkeyPatch, *, at: int) -> None:
    """From now on a training is interrupted when it writes its curve for the `at`-th time."""
    append, calls = loop.append, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        append(*arguments)

    patch.setattr(loop, "append", interrupted)
