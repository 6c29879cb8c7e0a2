"""Gloo groups: `python -m tests.metrics.ddp_worker FOLDER WORLD...`. Every rank is forked here and writes its results."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from anomaly_vlm.metrics import AUROC, AnomalyMetrics, ImageMetrics, PixelMetrics
from tests.metrics.cases import EVERYTHING, Case, in_batches, padded_shares, random_case

Results = dict[str, float]


def as_floats(values: dict[str, torch.Tensor]) -> Results:
    return {name: float(value) for name, value in values.items()}


def feed(metric: PixelMetrics, case: Case, rows: list[int], *, cast: Any = None, indexed: bool = True) -> None:
    for batch in in_batches(len(rows), 3):
        given = case.rows([rows[i] for i in batch])
        if cast is not None:
            given["maps"] = [torch.from_numpy(part).to(cast) for part in given["maps"]]
        if not indexed:
            del given["index"]
        metric.update(given.pop("maps"), given.pop("masks"), **given)


def padded(rank: int, world: int) -> Results:
    """Everything, with the repeats of a sampler."""
    case, metric = random_case(1), AnomalyMetrics(pixel=EVERYTHING)
    for batch in in_batches(len(padded_shares(23, world)[rank]), 2):
        rows = [padded_shares(23, world)[rank][i] for i in batch]
        given = case.rows(rows)
        maps, masks = given.pop("maps"), given.pop("masks")
        metric.update(case.scores[rows], maps, case.labels[rows], masks, **given)
    return as_floats(metric.compute())


def half(rank: int, world: int) -> Results:
    metric = PixelMetrics(**EVERYTHING)
    feed(metric, random_case(2), padded_shares(23, world)[rank], cast=torch.float16)
    return as_floats(metric.compute())


def mixed(rank: int, world: int) -> Results:
    """float32, float16 and bfloat16 maps in the same categories, void pixels, many ties."""
    metric = PixelMetrics(aupro_limits=(0.3, 0.1))
    case = random_case(3, void=True, levels=8)
    for i in padded_shares(23, world)[rank]:
        feed(metric, case, [i], cast=(torch.float32, torch.float16, torch.bfloat16)[i % 3])
    return as_floats(metric.compute())


def idle(rank: int, world: int) -> Results:
    """The first rank sees no image at all, the last all; then the last gets more while the others keep still."""
    metric = PixelMetrics()
    if rank == world - 1:
        feed(metric, random_case(4), list(range(10)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics: compute before update
        first = as_floats(metric.compute())
        if rank == world - 1:
            feed(metric, random_case(4), list(range(10, 23)))
        second = as_floats(metric.compute())
    return {**{f"first/{name}": value for name, value in first.items()}, **second}


def shared(rank: int, world: int) -> Results:
    """Uneven overlapping shares; exact mode can subtract any repeat."""
    metric = PixelMetrics()
    feed(metric, random_case(5), list(range(7)) if rank == 0 else list(range(rank, 23)))
    return as_floats(metric.compute())


def unnumbered(rank: int, world: int) -> Results:
    """Without `index` nothing is dropped, and one warning says so."""
    metric = PixelMetrics()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feed(metric, random_case(6), padded_shares(23, world)[rank], indexed=False)
        values = as_floats(metric.compute())
        metric.compute()
    values["warnings"] = sum("without `index`" in str(warning.message) for warning in caught)
    return values


def images(rank: int, world: int) -> Results:
    case, metric = random_case(7), ImageMetrics()
    rows = padded_shares(23, world)[rank]
    metric.update(case.scores[rows], case.labels[rows], category=[case.category[i] for i in rows], index=rows)
    return as_floats(metric.compute())


def binned(rank: int, world: int) -> Results:
    metric = PixelMetrics(mode="binned", bins=64, connectivity=(8, 4))
    feed(metric, random_case(13), padded_shares(23, world)[rank])
    return as_floats(metric.compute())


def binned_idle(rank: int, world: int) -> Results:
    """One rank has seen nothing; one category is on one rank only; half maps."""
    metric = PixelMetrics(mode="binned")
    if rank:
        feed(metric, random_case(14), list(range(rank - 1, 23, world - 1)), cast=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return as_floats(metric.compute())


def stuck(rank: int, world: int) -> Results:
    """A repeat in the middle of a half-precision state cannot be subtracted: every rank says so."""
    metric = PixelMetrics()
    rows = [[0, 1, 2, 3], [4, 2, 5], [6]][rank]
    feed(metric, random_case(8), rows, cast=torch.float16)
    try:
        metric.compute()
    except ValueError as error:
        return {"named": float("index 2," in str(error))}
    return {"named": 0.0}


def forward(rank: int, world: int) -> Results:
    """`forward` gives this process's batch alone, `compute` everything."""
    case, metric = random_case(9), AUROC()
    rows = [i for i in padded_shares(23, world)[rank] if case.labels[i]]
    batch = metric(case.maps[rows[0]], case.masks[rows[0]], index=[rows[0]])
    for i in rows[1:]:
        metric.update(case.maps[i], case.masks[i], index=[i])
    return {"batch": float(batch), "row": rows[0], "all": float(metric.compute())}


CASES: dict[str, Callable[[int, int], Results]] = {
    part.__name__: part
    for part in (padded, half, mixed, idle, shared, unnumbered, images, binned, binned_idle, stuck, forward)
}


def run_rank(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'store{world}'}", rank=rank, world_size=world)
    try:
        results = {name: case(rank, world) for name, case in CASES.items()}
    finally:
        dist.destroy_process_group()
    np.save(folder / f"{world}_{rank}.npy", np.array(results, dtype=object), allow_pickle=True)


def main(folder: Path, worlds: list[int]) -> int:
    """Forks after the imports, so that these are paid once; nothing has used threads yet."""
    context, failed = multiprocessing.get_context("fork"), 0
    for world in worlds:
        ranks = [context.Process(target=run_rank, args=(rank, world, folder)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            failed += process.exitcode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(world) for world in sys.argv[2:]]))
