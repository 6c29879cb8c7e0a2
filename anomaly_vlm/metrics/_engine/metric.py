"""What all metrics of the package share as `torchmetrics.Metric`s: states of their own kind, own collectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Module
from torchmetrics import Metric

from anomaly_vlm.metrics._engine.curves import Curve, draw_curves, thinned
from anomaly_vlm.metrics._engine.group import Alone, current_group
from anomaly_vlm.metrics._engine.image import ImageEngine
from anomaly_vlm.metrics._engine.ledger import warn_unnumbered
from anomaly_vlm.metrics._engine.options import Values, warn_undefined
from anomaly_vlm.metrics._engine.pixel import PixelEngine

Engine = PixelEngine | ImageEngine


class CurveMetric:
    """Curves and drawings of a metric with engines."""

    def curves(
        self: Any, category: str | None = None, points: int = 1000, *, level: str | None = None
    ) -> dict[str, Curve]:
        """ROC, PR and (pixels) PRO for drawing; every process of the group must call it.

        Args:
            category: one that was seen; None: all images as one.
            points: vertices are thinned to a vertical error below `1 / points`.
            level: `pixel` or `image` where the metric has both; default the first.

        Returns:
            `roc`, `pr`, `pro`, each `(x, y)` of float64 [K]; empty where undefined. Binned: through the ends of the bins.

        Raises:
            ValueError: unknown category or level.
        """
        level = level or next(iter(self.engines))
        if level not in self.engines:
            raise ValueError(f"level is {level!r}: choose one of {', '.join(self.engines)}")
        return thinned(self.engines[level].polygons(self._group(), category), points)

    def plot(
        self: Any,
        val: Any = None,
        ax: Any = None,
        *,
        curve: str | None = None,
        category: str | None = None,
        level: str | None = None,
    ) -> tuple[Any, Any]:
        """Draws curves (needs matplotlib, extra `plot`), or given results as torchmetrics does.

        Args:
            val: results of `compute` or `forward`; None: draw curves.
            ax: matplotlib axes for one curve; None makes a figure.
            curve: `roc`, `pr` or `pro`; None for all.
            category, level: as of `curves`.

        Returns:
            Figure (None where `ax` was given) and axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: unknown curve, category or level.
        """
        if val is not None:
            return self._plot(val, ax)
        level = level or next(iter(self.engines))
        curves, values = self.curves(category, level=level), self.values()
        known = values if category is None else {name.removeprefix(f"{category}/"): v for name, v in values.items()}
        texts = {}
        for name, title in {"roc": "auroc", "pr": "ap", "pro": "aupro"}.items():
            value = known.get(f"{level}_{title}", values.get(f"pooled/{level}_{title}"))
            texts[name] = title.upper() if value is None else f"{title.upper()} {value:.4f}"
        return draw_curves(curves, texts, curve, ax)


class EngineMetric(Metric):
    """A metric around engines.

    The state is not one tensor a name with one reduction, so torchmetrics' own synchronisation is off and `compute` runs the
    collectives of `_group`: every process of the group must call it, and every process gets the same values.

    Args:
        engines: by name, `pixel` and / or `image`.
        sync_on_compute: share the state with the other processes in `compute`.
        kwargs: of `torchmetrics.Metric`; `process_group` names the processes.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, engines: Mapping[str, Engine], *, sync_on_compute: bool = True, **kwargs: Any) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False, **kwargs)
        self.engines: dict[str, Any] = dict(engines)
        self.share = sync_on_compute
        self._values: Values | None = None  # of the last `compute`, while nothing changed
        self._warned: set[str] = set()
        self._stored = False  # in `state_dict`

    # ---- values --------------------------------------------------------------------------------------------------------

    def _group(self) -> Alone:
        return current_group(self.process_group) if self.share else Alone()

    def values(self) -> Values:
        """All values as Python floats; the same on every process."""
        group = self._group()
        if self._values is None or group.size > 1:  # another process may have news
            if "index" not in self._warned:
                unnumbered = any(engine.ledger.unnumbered for engine in self.engines.values())
                if warn_unnumbered(unnumbered, group):
                    self._warned.add("index")
            self._values = self._results(group)
            if self.update_called and group.rank == 0:
                self._warn(self._values)
        return self._values

    def _results(self, group: Alone) -> Values:
        raise NotImplementedError

    def _warn(self, values: Values) -> None:
        for name, engine in self.engines.items():
            if engine.ledger.categories and name not in self._warned and warn_undefined(values, name):
                self._warned.add(name)

    # ---- torchmetrics --------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._values = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`update`, then the value of this batch alone (of this process alone)."""
        self.update(*args, **kwargs)
        total, share, warned = self.engines, self.share, set(self._warned)
        try:
            self.engines = {name: engine.fresh() for name, engine in total.items()}
            self._changed()
            self.share = False
            self._warned |= {"pixel", "image"}  # a batch of one class is nothing to warn of
            self.update(*args, **kwargs)
            self._update_count -= 1
            self._forward_cache = self.compute()
        finally:
            self.engines, self.share, self._warned = total, share, warned
            self._changed()
        return self._forward_cache

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.engines = {name: engine.fresh() for name, engine in self.engines.items()}
        self._warned = set()
        self._changed()

    def persistent(self, mode: bool = False) -> None:
        """Whether `state_dict` holds the state."""
        self._stored = mode

    def state_dict(  # type: ignore[override]
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Empty, or the state as tensors after `persistent(True)`."""
        out: dict[str, Any] = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self._stored:
            for name, engine in self.engines.items():
                for key, array in engine.pack().items():
                    out[f"{prefix}{name}.{key}"] = torch.from_numpy(array.copy())
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, engine in self.engines.items():
            start = f"{prefix}{name}."
            keys = [key for key in state_dict if key.startswith(start)]
            if keys:
                engine.unpack({key.removeprefix(start): state_dict.pop(key).cpu().numpy() for key in keys})
                self._update_count = max(1, self._update_count)
                self._changed()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Module:
        for engine in self.engines.values():
            if isinstance(engine, PixelEngine) and engine.moves:
                engine.to(fn(torch.zeros(1, device=engine.options.device or "cpu")).device)
        return super()._apply(fn, *args, **kwargs)

    def merge_state(self, incoming_state: Mapping[str, Any] | Metric) -> None:
        """Takes the state of another metric of the same class and options up, as a higher rank's: its repeats are left out.

        Raises:
            ValueError: another class or other options, or repeats that cannot be subtracted; nothing has changed then.
        """
        other = incoming_state
        if not isinstance(other, type(self)):
            raise ValueError(
                f"cannot merge {type(other).__name__} into {type(self).__name__}: give a metric of this class"
            )
        for name, engine in self.engines.items():
            engine.check_merge(other.engines[name])
        for name, engine in self.engines.items():
            engine.merge(other.engines[name])
        self._update_count += other._update_count
        self._changed()
