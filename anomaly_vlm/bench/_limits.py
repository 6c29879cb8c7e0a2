"""What the metrics must reach, and whether a run of the benchmark did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from anomaly_vlm.bench._measure import Measured

EXACT_VALUES = ("auroc", "ap", "f1_max", "fpr95", "aupro")
WIDTHS = {"auroc": 1e-4, "ap": 5e-4, "f1_max": 2e-4, "fpr95": 2e-4, "aupro": 2e-4}


class Limit(NamedTuple):
    """One line of the table of limits."""

    what: str
    bound: str
    measured: str
    met: bool


class StreamResult(NamedTuple):
    """`memory` MB over the start; `growth` MB of it after the first quarter of the images."""

    kind: str
    images: int
    memory: float
    growth: float
    cpu: float


def at_most(what: str, measured: float, bound: float, unit: str = "") -> Limit:
    return Limit(what, f"<= {bound:g}{unit}", f"{measured:.3g}{unit}", measured <= bound)


def at_least(what: str, measured: float, bound: float, unit: str = "x") -> Limit:
    return Limit(what, f">= {bound:g}{unit}", f"{measured:.3g}{unit}", measured >= bound)


def judge(
    title: str,
    pixels: int,
    results: Mapping[str, Measured],
    references: Mapping[bool, Mapping[str, float]],
    *,
    main: bool,
    small: bool,
) -> list[Limit]:
    """The limits that speak of one set.

    Args:
        title: Title of the set.
        pixels: Number of pixels in all maps of the set.
        results: Measurements by contender; those that were not installed are left out of the comparison.
        references: Values for float32 maps (False) and for maps rounded to float16 (True).
        main: The set that all limits speak of.
        small: The set has images of 256 px, where float16 has less to win.
    """
    exact, half, binned = (results[name] for name in ("ours exact", "ours float16", "ours binned"))
    out = []
    for name, ratio in {"official routine": 100, "anomalib": 40, "torchmetrics exact": 25}.items():
        if name in results and (main or name == "official routine"):
            out.append(at_least(f"{title}: exact faster than {name}", results[name].cpu / exact.cpu, ratio))
    if "ADEval arrays" in results:
        arrays, stream = results["ADEval arrays"].cpu, results["ADEval accumulator"].cpu
        out.append(at_most(f"{title}: exact float32, of ADEval's CPU time", exact.cpu / arrays, 1.6, "x"))
        out.append(at_least(f"{title}: exact float16 faster than ADEval", arrays / half.cpu, 2 if small else 3))
        out.append(at_most(f"{title}: binned, of ADEval's accumulator's CPU time", binned.cpu / stream, 1.6, "x"))
    if not small:
        facts = exact.facts
        out.append(at_most(f"{title}: update of an image with regions (median)", facts["update_ms_regions"], 3, " ms"))
        out.append(at_most(f"{title}: update of a normal image (median)", facts["update_ms_normal"], 1.5, " ms"))
    room = (5 * pixels + 150e6) / 1e6
    out.append(at_most(f"{title}: memory, exact (5 B a pixel + 150 MB)", exact.memory, room, " MB"))
    out.append(at_most(f"{title}: memory, float16", half.memory, 20, " MB"))
    out.append(at_most(f"{title}: memory, binned", binned.memory, 120, " MB"))
    for label, one, rounded in (("exact", exact, False), ("float16", half, True)):
        worst = max(abs(one.facts[name] - references[rounded][name]) for name in EXACT_VALUES)
        out.append(at_most(f"{title}: {label}, largest deviation", worst, 1e-9))
        same = one.facts["f1_max_threshold"] == references[rounded]["f1_max_threshold"]
        out.append(Limit(f"{title}: {label}, threshold bit for bit", "equal", "equal" if same else "differs", same))
    out += _binned(title, binned, references[False], main=main)
    if main:
        extra = results["ours exact, legacy too"].cpu / exact.cpu
        out.append(at_most(f"{title}: exact with legacy values, of exact", extra, 1.5, "x"))
    return out


def _binned(title: str, binned: Measured, reference: Mapping[str, float], *, main: bool) -> list[Limit]:
    """Intervals that contain the reference, their widths on the main set, and no width for half-precision maps."""
    inside = sum(
        binned.facts[f"{name}/lower"] <= reference[name] <= binned.facts[f"{name}/upper"] for name in EXACT_VALUES
    )
    total = len(EXACT_VALUES)
    out = [Limit(f"{title}: binned intervals contain the reference", f"{total}", f"{inside}", inside == total)]
    for name, bound in WIDTHS.items() if main else ():
        width = binned.facts[f"{name}/upper"] - binned.facts[f"{name}/lower"]
        out.append(at_most(f"{title}: binned, width of {name}", width, bound))
    rounding = 1e-11  # bounds are widened by 1e-12 on either side
    return [*out, at_most(f"{title}: binned, width for float16 maps", reference["binned_half_width"], rounding)]


def judge_stream(done: StreamResult) -> list[Limit]:
    """Constant memory whatever the number of images."""
    what = f"{done.images} streamed images, {done.kind}"
    return [
        at_most(f"{what}: memory", done.memory, 20 if done.kind == "float16" else 120, " MB"),
        at_most(f"{what}: growth after the first quarter", done.growth, 5, " MB"),
    ]
