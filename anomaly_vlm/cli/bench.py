"""`anomaly-vlm bench`: benchmarks, each a module with `run(out_dir, quick)`, most in `anomaly_vlm.bench`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import pop_key
from anomaly_vlm.errors import unknown_choice
from anomaly_vlm.runs.checks import writable_folder

BENCHES = {
    "adaclip": "a training step and an inference pass against the published way of computing them",
    "trivial": "trivial baselines on the held-out procedural pictures, which any method must beat",
    "training": "AnomalyCLIP and FAPrompt with frozen tokens kept, against the published way of computing a step",
    "winclip": "windows against a plain forward and against one at a time; texts, token cache, patch memory",
    "filo": "FiLo's seconds by part, MMCI's share, a training step against the published way",
    "vl4ad": "seconds for a 1024 x 2048 image: encoder, decoder, scoring; memory of the streamed scoring",
    "coverage": "whether the promised rate of false alarms holds, over random draws of good parts (good=FOLDER)",
    "predict": "images a second of predict, from file to table and picture, beside the bare towers",
    "frontier": "an image under the methods of 2024 to 2026, beside the bare tower; MuSc over 1,000 images",
    "precision": "what bf16-mixed changes, for every method that learns: trained and scored on drawn images",
    "loader": "images a second at 518 px beside plain PIL and torchvision; memory of 8,000 px images",
    "nano": "what each choice of the nano CLIP's recipe brings at equal CPU seconds (seconds=120; needs the extra nano)",
    "metrics": "exact and binned metrics against the official routine and public libraries",
}
ELSEWHERE = {"nano": "anomaly_vlm.nano.ablation"}  # stands on more than a benchmark may
KEYS = {"coverage": "good", "nano": "seconds"}  # the key that a benchmark takes
HELP = "usage: anomaly-vlm bench NAME [--quick] [good=FOLDER of coverage] [seconds=N of nano]\n\n" + "\n".join(
    f"  {name:<10} {text}" for name, text in BENCHES.items()
)


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm bench` with its arguments; returns the exit status."""
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP + "\n")
        return 0
    name, *rest = arguments
    if name not in BENCHES:
        raise unknown_choice("bench", name, BENCHES)
    key = KEYS.get(name)
    value, rest = (None, rest) if key is None else pop_key(rest, key)
    if rest not in ([], ["--quick"]):
        raise unknown_choice("option of bench", rest[0], ["--quick"])
    folder = writable_folder(Path("outputs") / "bench" / name)
    options = {} if key is None or value is None else {key: value}
    module = ELSEWHERE.get(name, f"anomaly_vlm.bench.{name}")
    importlib.import_module(module).run(folder, quick=bool(rest), **options)
    return 0
