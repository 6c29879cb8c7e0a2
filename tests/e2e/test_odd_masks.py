"""Masks that vanish at the size of an evaluation are named and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.cli import main
from tests.data.trees import mask, picture

pytestmark = pytest.mark.e2e


def test_masks_that_vanish_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, side in enumerate((200, 3, 2)):
        picture(tmp_path / f"parts/good/{i}.png", size=(900, 900))
        picture(tmp_path / f"parts/dent/{i}.png", size=(900, 900))
        mask(tmp_path / f"parts/ground_truth/dent/{i}.png", size=(900, 900), box=(5, 5, 5 + side, 5 + side))
    words = [
        "method=winclip",
        "backbone=tiny_random",
        "dataset=folder",
        "dataset.train=null",
        "pictures.per_category=0",
    ]
    assert main(["evaluate", *words, f"dataset.test.root={tmp_path / 'parts'}", f"output_dir={tmp_path / 'out'}"]) == 0
    (told,) = [message for message in caplog.messages if "masks" in message]
    assert told.startswith("2 of 3 masks are empty at 96 px") and "dent/1.png" in told and "dent/2.png" in told
