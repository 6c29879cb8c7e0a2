"""Engines as `torchmetrics.Metric`s: updates, values, curves, merging and checkpoints, with collectives of their own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from anomaly_vlm.metrics._engine.binned import BinnedEngine
from anomaly_vlm.metrics._engine.curves import Curve, Polygon, draw_curves, thin_curves
from anomaly_vlm.metrics._engine.exact import ExactEngine
from anomaly_vlm.metrics._engine.group import Group, current_group
from anomaly_vlm.metrics._engine.inputs import (
    ArrayLike,
    MaskKinds,
    Names,
    PixelOptions,
    Values,
    VoidOnly,
    as_tensors,
    has_mean,
    warn_undefined,
)
from anomaly_vlm.metrics._engine.ledger import Category, Ledger, warn_unnumbered
from anomaly_vlm.metrics._engine.pixel import PixelEngine
from anomaly_vlm.metrics._engine.whole_images import WholeImageEngine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_VALUES = {"roc": "auroc", "pr": "ap", "pro": "aupro"}  # the value in the legend of each curve


class Engine(Protocol):
    """The state of a metric on one process, and its values over all processes.

    Attributes:
        ledger: Which images were seen and which of them count.
    """

    ledger: Ledger

    def fresh(self) -> Self:
        """Returns an empty engine with the same options."""
        ...

    def add(
        self, scores: ArrayLike, targets: ArrayLike, category: Names = None, index: ArrayLike | None = None
    ) -> None:
        """Checks a batch and adds it.

        Args:
            scores: Maps or image scores.
            targets: Masks or image labels.
            category: One name an image, or one for all.
            index: `[B]` integers, the numbers in the data set.

        Raises:
            ValueError: Something in the batch is not accepted; the state is as before.
        """
        ...

    def results(self, group: Group, more: Sequence[Category] = ()) -> Values:
        """Returns all values by name, the same on every process; NaN where undefined.

        Args:
            group: The processes that share their states; each of them has to call this.
            more: Categories to name even if no image of them was seen.
        """
        ...

    def polygons(self, group: Group, category: Category) -> dict[str, Polygon]:
        """Returns the curves of a category by name; of all images for None. Every process of the group has to call this."""
        ...

    def all_polygons(self, group: Group) -> Iterator[tuple[Category, dict[str, Polygon]]]:
        """Yields the curves of every category, and of all images for None. Every process of the group has to call this."""
        ...

    def check_merge(self, other: Self) -> None:
        """Checks that `merge` can take in another engine.

        Raises:
            ValueError: It cannot.
        """
        ...

    def merge(self, other: Self) -> None:
        """Takes in another engine's state as that of a process of higher rank, so that its repeated images drop out."""
        ...

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Follows the metric to another device, if the state was asked to live on an accelerator.

        Args:
            move: What torch applies to every tensor of the metric.
        """
        ...

    def pack(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name, for checkpoints."""
        ...

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `pack`.

        Raises:
            ValueError: The stored state was made with other options.
        """
        ...


def pixel_engine(options: PixelOptions) -> PixelEngine:
    """Returns an empty pixel engine for the options."""
    return ExactEngine(options) if options.mode == "exact" else BinnedEngine(options)


class EngineMetric(Metric):
    """A metric around one or two engines.

    The state is not one tensor a name with one reduction, so torchmetrics' own synchronisation is off. `compute` runs the
    collectives of `group` instead: every process of the group has to call it, and every process gets the same values.

    Args:
        engines: Engines by name, `pixel` and / or `image`.
        sync_on_compute: Whether `compute` shares the state with the other processes.
        **kwargs: Options of `torchmetrics.Metric`; `process_group` names the processes.
    """

    full_state_update = False
    is_differentiable = False
    void_only: VoidOnly = "refuse"

    def __init__(self, engines: Mapping[str, Engine], *, sync_on_compute: bool = True, **kwargs: Any) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        self.engines = dict(engines)
        self._sync_in_values = sync_on_compute
        self._values: Values | None = None  # of the last `compute`, while nothing has changed
        self._warned: set[str] = set()  # warnings that were given
        self._masks = MaskKinds()
        self._in_state_dict = False

    # ---- values --------------------------------------------------------------------------------------------------------

    def _group(self) -> Group:
        """Returns the processes that share their states."""
        return current_group(self.process_group) if self._sync_in_values else Group()

    def values(self) -> Values:
        """Returns all values by name as Python floats; the same on every process."""
        group = self._group()
        if self._values is None or group.size > 1:  # another process may have new images
            if "index" not in self._warned:
                unnumbered = any(engine.ledger.unnumbered for engine in self.engines.values())
                if warn_unnumbered(unnumbered, group):
                    self._warned.add("index")
            values = self._results(group)
            self._look_at_masks(values, group)
            self._values = values
            if self.update_called and group.rank == 0:
                self._warn_undefined(self._values)
        return self._values

    def _results(self, group: Group) -> Values:
        """Returns all values over the processes of `group`; metrics with several engines define their own."""
        (engine,) = self.engines.values()
        return engine.results(group)

    def _look_at_masks(self, values: Values, group: Group) -> None:
        """Raises a `ValueError` where 255 alone stands in masks and nothing is anomalous, or warns of such masks."""
        if self.void_only == "ignore":
            return
        kinds, told_before = MaskKinds(), False
        for theirs, told in group.gather_objects((self._masks, bool(self._warned & {"pixel", "masks"}))):
            kinds.add_counts(theirs)
            told_before = told_before or told  # on the first process alone
        if told_before:
            return
        nothing = (
            kinds.no_anomaly if all(math.isnan(values[n]) for n in values if "pixel_" in n and has_mean(n)) else ""
        )
        if nothing and self.void_only == "refuse":
            raise ValueError(nothing)
        if (line := nothing or kinds.two_kinds) and group.rank == 0:
            warnings.warn(line, UserWarning, stacklevel=4)
            self._warned.add("masks")

    def _warn_undefined(self, values: Values) -> None:
        for level in ("pixel", "image"):
            seen = level in self.engines and self.engines[level].ledger.categories
            if seen and level not in self._warned and warn_undefined(values, level):
                self._warned.add(level)

    def _add_maps(
        self, level: str, maps: ArrayLike, masks: ArrayLike, category: Names, index: ArrayLike | None
    ) -> None:
        """Adds maps and masks to an engine of pixels, and notes what kinds of masks they are."""
        engine = self.engines[level]
        assert isinstance(engine, PixelEngine | WholeImageEngine)
        images = engine.prepare(maps, masks, category, index)
        engine.commit(images)
        self._masks.add(images)
        self._changed()

    # ---- torchmetrics --------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Forgets the values of the last `compute`."""
        self._values = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a batch, as `update`, and returns the value of this batch alone, on this process alone."""
        self.update(*args, **kwargs)
        total, masks, sync, warned = self.engines, self._masks, self._sync_in_values, set(self._warned)
        try:
            self.engines = {level: engine.fresh() for level, engine in total.items()}
            self._masks = MaskKinds()
            self._changed()
            self._sync_in_values = False
            self._warned |= {"pixel", "image"}  # that a batch holds one class only is nothing to warn about
            self.update(*args, **kwargs)
            self._update_count -= 1
            self._forward_cache = self.compute()
        finally:
            self.engines, self._masks, self._sync_in_values, self._warned = total, masks, sync, warned
            self._changed()
        return self._forward_cache

    def reset(self) -> None:
        """Forgets all images."""
        super().reset()
        self.engines = {level: engine.fresh() for level, engine in self.engines.items()}
        self._masks, self._warned = MaskKinds(), set()
        self._changed()

    def persistent(self, mode: bool = False) -> None:
        """Sets whether `state_dict` holds the state."""
        self._in_state_dict = mode

    def state_dict(  # type: ignore[override]  # torch declares overloads
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Returns an empty dict, or the state as tensors after `persistent(True)`."""
        out: dict[str, Any] = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self._in_state_dict:
            for level, engine in self.engines.items():
                for key, array in engine.pack().items():
                    out[f"{prefix}{level}.{key}"] = torch.from_numpy(array.copy())
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the state out of `state_dict` if it is there."""
        for level, engine in self.engines.items():
            start = f"{prefix}{level}."
            keys = [key for key in state_dict if key.startswith(start)]
            if keys:
                engine.unpack({key.removeprefix(start): state_dict.pop(key).cpu().numpy() for key in keys})
                self._update_count = max(1, self._update_count)
                self._changed()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Module:
        """Moves the metric, and the states that were asked to live on an accelerator."""
        for engine in self.engines.values():
            engine.follow(fn)
        return super()._apply(fn, *args, **kwargs)

    def merge_state(self, incoming_state: Mapping[str, Any] | Metric) -> None:
        """Takes in the state of another metric as that of a process of higher rank, so that its repeated images drop out.

        Args:
            incoming_state: A metric of the same class and options.

        Raises:
            ValueError: The class or the options differ, or a repeated image is part of a state from which it cannot be
                removed; the state is as before.
        """
        other = incoming_state
        if not isinstance(other, type(self)):
            raise ValueError(
                f"cannot merge {type(other).__name__} into {type(self).__name__}: give a metric of this class"
            )
        for level, engine in self.engines.items():
            engine.check_merge(other.engines[level])
        for level, engine in self.engines.items():
            engine.merge(other.engines[level])
        self._masks.add_counts(other._masks)
        self._update_count += other._update_count
        self._changed()


class CurveMetric(EngineMetric):
    """An engine metric that gives all values at once, their curves and drawings of these."""

    def compute(self) -> dict[str, Tensor]:
        """Returns all values by name, as zero-dimensional float64 CPU tensors; the same on every process.

        It may be called again, and before further updates.
        """
        return as_tensors(self.values())

    def curves(self, category: str | None = None, points: int = 1000, *, level: str | None = None) -> dict[str, Curve]:
        """Returns ROC, PR and (for pixels) PRO for drawing; every process of the group has to call it.

        Args:
            category: A category that was seen; None takes all images as one.
            points: Vertices are dropped as long as the vertical error stays below `1 / points`.
            level: `pixel` or `image`, for a metric that has both; None takes the first.

        Returns:
            `roc`, `pr` and `pro`, each a pair (x, y) of float64 `[K]`, empty where undefined. In binned mode the curves run
            through the ends of the bins.

        Raises:
            ValueError: There is no such category or level.
        """
        level = level or next(iter(self.engines))
        if level not in self.engines:
            raise ValueError(f"level is {level!r}: choose one of {', '.join(self.engines)}")
        return thin_curves(self.engines[level].polygons(self._group(), category), points)

    def all_curves(self, points: int = 1000) -> dict[tuple[str, str], dict[str, Curve]]:
        """Returns the curves of every category and of all images; every process of the group has to call it.

        Args:
            points: Vertices are dropped as long as the vertical error stays below `1 / points`.

        Returns:
            By category (`pooled` for all images) and level (`image`, `pixel`) what `curves` gives.

        Raises:
            ValueError: `points` is below 1.
        """
        group, found = self._group(), {}
        for level, engine in self.engines.items():
            for category, polygons in engine.all_polygons(group):
                found["pooled" if category is None else category, level] = thin_curves(polygons, points)
        return found

    def plot(
        self,
        val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None,
        ax: Axes | None = None,
        *,
        curve: str | None = None,
        category: str | None = None,
        level: str | None = None,
    ) -> tuple[Figure | None, Axes | np.ndarray]:
        """Draws curves, or given results as torchmetrics draws them; needs matplotlib (extra `plot`).

        Args:
            val: Results of `compute` or `forward`; None draws curves.
            ax: Matplotlib axes for one curve; None makes a figure.
            curve: `roc`, `pr` or `pro`; None draws all.
            category: A category that was seen; None takes all images as one.
            level: `pixel` or `image`, for a metric that has both; None takes the first.

        Returns:
            The figure (None if `ax` was given) and the axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: There is no such curve, category or level.
        """
        if val is not None:
            drawn: tuple[Figure | None, Axes | np.ndarray] = self._plot(val, ax)
            return drawn
        level = level or next(iter(self.engines))
        curves, values = self.curves(category, level=level), self.values()
        if category is None:
            of_category = values
        else:
            of_category = {name.removeprefix(f"{category}/"): value for name, value in values.items()}
        labels = {}
        for name, title in CURVE_VALUES.items():
            value = of_category.get(f"{level}_{title}", values.get(f"pooled/{level}_{title}"))
            labels[name] = title.upper() if value is None else f"{title.upper()} {value:.4f}"
        return draw_curves(curves, labels, curve, ax)
