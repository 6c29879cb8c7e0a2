"""The towers and their hooks against plain open_clip and the published implementations' numbers."""

from __future__ import annotations

import open_clip
import pytest
import torch

from tests.support.golden import Fixture, fixture_paths, golden_backbone
from anomaly_vlm.backbone import Prompts, run_blocks
from anomaly_vlm.backbone.weights import _fill, read_weights
from tests.support.golden import ROOT

pytestmark = pytest.mark.golden
