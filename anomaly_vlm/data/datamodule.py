"""`AnomalyDataModule`: the sources of a run as loaders that any Lightning trainer can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.augment import Augment
from anomaly_vlm.data.checks import check_files
from anomaly_vlm.data.crops import RandomCrop
from anomaly_vlm.data.dataset import AnomalyDataset, PixelCache, collate
from anomaly_vlm.data.limits import balanced
from anomaly_vlm.data.references import listed, pick, read_list
from anomaly_vlm.data.sampler import BatchesSampler, EpochSampler, ShardSampler
from anomaly_vlm.data.source import Source
from anomaly_vlm.data.types import Batch, Preprocess, References, Sample
from anomaly_vlm.errors import UserError

VERBS = {"train": "trained on", "val": "validated on", "test": "tested on"}


class TrainLoader(DataLoader):
    """A loader that a checkpoint can resume: its order is a function of (seed, epoch), and its state says which order."""

    def __init__(self, *args: Any, order: dict[str, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = order

    def state_dict(self) -> dict[str, int]:
        return dict(self.order)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises a `UserError` where the checkpoint's run drew its batches in another order."""
        for key, value in self.order.items():
            if state.get(key) != value:
                raise UserError(
                    f"the checkpoint was made with {key}={state.get(key)}, this run has {key}={value}: resume with the same"
                    " data and options"
                )


class AnomalyDataModule(L.LightningDataModule):
    """Training, validation and test sources behind one interface; everything random in them is a function of `seed`.

    Args:
        train, test, val: sources of the sides; None where a command does not need one.
        batch_size: of training, on each process. eval_batch_size: of validation, test and prediction.
        num_workers: processes that load images; 0: the main process.
        seed: of order, mosaics and augmentations.
        mosaic: probability of a 2 x 2 mosaic in training. mosaic_on: the data sets whose samples get one; None: all.
        augment: `kornia.augmentation` modules on training images and masks. crop: a random crop before them.
        train_limit, eval_limit: use at most so many samples, balanced over category and label.
        shots: reference images of each test category for few-shot methods; none of them stays in the test set.
        shots_list: file that names them (see `references.listed`); None: picked by `seed`.
        train_on: `dataset` (side `train`), or `references` (each step all shots of one category), or `nothing`.
        cache_mb: preprocessed pixels kept in memory, all sides together, in MB (only with `num_workers` 0); 0: none.

    Attributes:
        preprocess: set once the backbone is known, before any loader is asked for.
        selection_side: `val` or `test`, which `val_dataloader` serves; None: no validation loop.
        excluded_paths: paths of the reference images in a checkpoint's memory, which leave the test set in place of picks.
        tokens: cache of what the method's frozen image tower makes of the pixels; what it holds comes without its image.
    """

    def __init__(
        self,
        *,
        train: Source | None = None,
        test: Source | None = None,
        val: Source | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        mosaic: float = 0.0,
        mosaic_on: Sequence[str] | None = None,
        augment: Sequence[Any] = (),
        crop: RandomCrop | None = None,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        shots: int = 0,
        shots_list: str | None = None,
        train_on: Literal["dataset", "references", "nothing"] = "dataset",
        cache_mb: int = 1000,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test}
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.mosaic = seed, mosaic
        self.mosaic_on = None if mosaic_on is None else tuple(mosaic_on)
        self.augment, self.crop = Augment(augment) if len(augment) else None, crop
        self.limits = {"train": train_limit, "val": eval_limit, "test": eval_limit}
        self.shots, self.shots_list, self.train_on = shots, shots_list, train_on
        self.preprocess: Preprocess | None = None
        self.selection_side: Literal["val", "test"] | None = None
        self._cache = PixelCache(cache_mb * 10**6) if num_workers == 0 and cache_mb else None
        self._samples: dict[str, list[Sample]] = {}
        self._picks: list[Sample] | None = None
        self.excluded_paths: set[str] | None = None
        self._totals: dict[str, int] = {}
        self.tokens: TokenCache | None = None
        self._datasets: dict[tuple[str, Preprocess], AnomalyDataset] = {}

    # ---- what there is -----------------------------------------------------------------------------------------------

    def samples(self, side: str) -> list[Sample]:
        """The samples of a side, after its limit.

        Raises:
            UserError: no source for the side, an empty one, or training images without labels.
        """
        if side not in self._samples:
            if side == "train" and self.train_on == "references":
                self._samples[side] = self.picks()
                return self._samples[side]
            source = self.sources[side]
            if source is None:
                raise UserError(f"no {side} set: choose one with source@dataset.{side}=NAME")
            found = source.samples(side)
            if not found:
                raise UserError(
                    f"{source.name} has no images for side {side}: choose another source@dataset.{side}=NAME"
                )
            if side != "test":
                _need_labels(found, f"the {side} set {source.name}")
            if side == "test" and self.shots:
                taken = {sample.path for sample in self.picks()} if self.excluded_paths is None else self.excluded_paths
                found = [sample for sample in found if sample.path not in taken]
            self._totals[side] = len(found)
            self._samples[side] = balanced(found, self.limits[side])
        return self._samples[side]

    def picks(self) -> list[Sample]:
        """The reference images, category by category; none where `shots` is 0.

        Raises:
            UserError: the test set has too few normal images, or the list does not fit it.
        """
        if self._picks is None:
            source = self.sources["test"]
            if source is None or not self.shots:
                self._picks = []
            elif self.shots_list is not None:
                self._picks = listed(source.references(), read_list(self.shots_list), self.shots, self.shots_list)
            else:
                self._picks = pick(source.references(), self.shots, self.seed)
        return self._picks

    def references(self) -> list[References]:
        """The reference images as batches, one a category."""
        preprocess = self._preprocess()
        found = []
        for rows in _same_category(self.picks()):
            dataset = AnomalyDataset(rows, preprocess, cache=self._cache, name=f"references {rows[0].category}")
            dataset.tokens = self.tokens
            batch = collate([dataset[i] for i in range(len(rows))])
            found.append(References(batch, partial(_resized, rows, preprocess)))
        return found

    def describe(self, side: str | None = None) -> str:
        """`trained on procedural (800 images), tested on magnetic_tile (1,344 images)`, or one side of it."""
        sides = [side] if side else [name for name, source in self.sources.items() if source is not None]
        if side is None and self.sources["train"] is None and self.train_on != "dataset":
            sides = ["train", *sides]
        return ", ".join(self._describe_side(name) for name in sides)

    def _describe_side(self, side: str) -> str:
        if side == "train" and (self.train_on != "dataset" or self.sources["train"] is None):
            return self.known or "not trained"
        said = f"{VERBS[side]} {self._describe_one(side)}"
        return f"{said}, {self.known}" if side == "train" and self.known else said

    @property
    def known(self) -> str:
        """`2 normal images of each category known`, or nothing without reference images."""
        return f"{self.shots} normal image{'s' * (self.shots > 1)} of each category known" if self.shots else ""

    def _describe_one(self, side: str) -> str:
        count, source = len(self.samples(side)), self.sources[side]
        total = self._totals[side]
        images = f"{count:,} of {total:,} images" if count < total else f"{count:,} image{'s' * (count != 1)}"
        note = getattr(source, "note", "")
        return f"{source.name if source else side} ({f'{note}; ' if note else ''}{images})"

    @property
    def augmented(self) -> bool:
        """Whether training images get mosaics or augmentations."""
        train = self.sources["train"]
        if train is None:
            return False
        named = self.mosaic_on is None or any(sample.dataset in self.mosaic_on for sample in self.samples("train"))
        return self.augment is not None or self.crop is not None or (self.mosaic > 0 and named)

    def check(self) -> None:
        """Looks at every file of all sides, in threads; see `check_files`."""
        sides = [self.samples(side) for side, source in self.sources.items() if source is not None]
        picks = self.picks() if self.excluded_paths is None else []
        check_files(sample for samples in (*sides, picks) for sample in samples)

    # ---- loaders -----------------------------------------------------------------------------------------------------

    def dataset(self, side: str) -> AnomalyDataset:
        """The map-style data set of a side; mosaics and augmentations on side `train` only."""
        preprocess = self._preprocess()
        if side == "train":
            preprocess = replace(preprocess, mask_size=None)  # losses compare at the input's size
        key = (side, preprocess)
        if key not in self._datasets:
            training = side == "train"
            self._datasets[key] = AnomalyDataset(
                self.samples(side),
                preprocess,
                seed=self.seed,
                mosaic=self.mosaic if training else 0.0,
                mosaic_on=self.mosaic_on,
                augment=self.augment if training else None,
                crop=self.crop if training else None,
                cache=self._cache,
                name=side,
            )
        self._datasets[key].tokens = self.tokens
        return self._datasets[key]

    def _preprocess(self) -> Preprocess:
        if self.preprocess is None:
            raise RuntimeError("preprocess is not set: the backbone decides about the pixels")
        return self.preprocess

    def first_batch(self) -> Batch:
        """What training meets first: one image, or all references of one category."""
        dataset = self.dataset("train")
        rows = _positions_by_category(self.samples("train"))[0] if self.train_on == "references" else [0]
        return collate([dataset[i] for i in rows])

    def train_dataloader(self) -> DataLoader:
        """Shuffled; references: one batch a category, on every process the same. After a resume, the first epoch goes on
        where the checkpoint stopped."""
        dataset = self.dataset("train")
        if self.train_on == "references":
            batches = _positions_by_category(self.samples("train"))
            order = {"categories": len(batches), "shots": self.shots, "seed": self.seed}
            sampler: Any = BatchesSampler(batches, skip=self._progress(len(batches))[1])
            return TrainLoader(dataset, batch_sampler=sampler, order=order, **self._options())
        rank, world_size = self._rank()
        epoch, skip = self._progress(-(-len(dataset) // (world_size * self.batch_size)))
        sampler = EpochSampler(
            len(dataset),
            seed=self.seed,
            epoch=epoch,
            skip=skip * self.batch_size,
            rank=rank,
            world_size=world_size,
        )
        order = {"images": len(dataset), "batch_size": self.batch_size, "seed": self.seed, "processes": world_size}
        return TrainLoader(dataset, sampler=sampler, batch_size=self.batch_size, order=order, **self._options())

    def val_dataloader(self) -> Any:
        """The side that checkpoints are chosen on; no loader where none is."""
        return [] if self.selection_side is None else self._eval_loader(self.selection_side)

    def test_dataloader(self) -> DataLoader:
        _need_labels(self.samples("test"), "the test set")
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """The test side in order, labels or not."""
        return self._eval_loader("test")

    def _eval_loader(self, side: str) -> DataLoader:
        dataset = self.dataset(side)
        rank, world_size = self._rank()
        sampler: Sampler = ShardSampler(len(dataset), rank=rank, world_size=world_size)
        return DataLoader(dataset, sampler=sampler, batch_size=self.eval_batch_size, **self._options())

    def _options(self) -> dict[str, Any]:
        # A generator of its own: a loader that draws from torch's global one would change a method's random numbers.
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self, batches: int) -> tuple[int, int]:
        """The epoch to go on with, and how many of its batches a resumed run has used already."""
        if self.trainer is None:
            return 0, 0
        limit = self.trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        if done < batches:
            return self.trainer.current_epoch, done
        return loop.epoch_progress.current.ready, 0  # that epoch was complete, whether or not it was counted as such


def _same_category(samples: Sequence[Sample]) -> list[list[Sample]]:
    return [[samples[i] for i in rows] for rows in _positions_by_category(samples)]


def _positions_by_category(samples: Sequence[Sample]) -> list[list[int]]:
    """Positions of the samples of each category, in the order of their first ones."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.category, []).append(i)
    return list(groups.values())


def _resized(samples: Sequence[Sample], preprocess: Preprocess, side: int) -> Tensor:
    """Samples at another side in pixels, [k, 3, side, side]."""
    dataset = AnomalyDataset(samples, replace(preprocess, size=side))
    return torch.stack([dataset[i].image for i in range(len(samples))])


def _need_labels(samples: Sequence[Sample], what: str) -> None:
    for sample in samples:
        if sample.label is None:
            raise UserError(
                f"{what} has no labels ('{sample.path}'): sort the images into good/ and a folder for each defect, or use"
                " 'predict'"
            )
