"""`AnomalyData`: the sources of a run as samples, data sets and loaders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Sampler

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.data.checks import check_categories, check_files, need_labels
from anomaly_vlm.data.dataset import AnomalyDataset, Item, StoredTokens, collate
from anomaly_vlm.data.limits import balanced
from anomaly_vlm.data.loaders import AheadLoader, TrainLoader
from anomaly_vlm.data.pixels import PixelCache
from anomaly_vlm.data.references import MemoryImages, ReferencePicks, at_size, changed, positions_by_category, roots_of
from anomaly_vlm.data.sampler import BatchesSampler, EpochSampler, ShardSampler
from anomaly_vlm.data.source import Source
from anomaly_vlm.data.types import Batch, Preprocess, References, Sample
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")


class AnomalyData:
    """Training, validation and test sources behind one interface; everything random in them is a function of `seed`.

    `AnomalyDataModule` is the same for a Lightning trainer.

    Args:
        train: Source of the training side; None where a command does not need it, as for the others.
        test: Source of the test side.
        val: Source of the validation side.
        batch_size: Of training, on each process.
        eval_batch_size: Of validation, test and prediction.
        num_workers: Processes that load images; 0 for the main process.
        seed: Of order, mosaics and augmentations.
        augment: What training images go through; None for none.
        limits: Largest number of samples by side, balanced over category and label; None for no limit.
        picks: Reference images of each test category for few-shot methods; none of them stays in the test set.
        train_on: `dataset` (side `train`), `references` (each step all references of one category), or `nothing`.
        cache_mb: Preprocessed pixels held in memory, all sides together, in MB (only with `num_workers` 0); 0 for none.

    Attributes:
        preprocess: Set once the backbone is built, before any loader is asked for.
        selection_side: `val` or `test`, which `val_dataloader` serves; None for no validation loop.
        memory_images: Reference images in a checkpoint's memory; they, and not the picks, are removed from the test set.
        evaluations: How often the test side is read. Pixels are held in memory only of sides that are read again.
        trainer: Lightning's, which knows the other processes and where a resumed training continues; None for neither.
    """

    trainer: Any = None

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
        augment: TrainingAugmentation | None = None,
        limits: Mapping[str, int | None] | None = None,
        picks: ReferencePicks | None = None,
        train_on: Literal["dataset", "references", "nothing"] = "dataset",
        cache_mb: int = 1000,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test}
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.augment, self.limits = seed, augment or TrainingAugmentation(), dict(limits or {})
        self.picks, self.train_on = picks or ReferencePicks(), train_on
        self.preprocess: Preprocess | None = None
        self.selection_side: Literal["val", "test"] | None = None
        self.memory_images: MemoryImages | None = None
        self.evaluations = 1
        self._cache = PixelCache(cache_mb * 10**6) if num_workers == 0 and cache_mb else None
        self._encode: Callable[[Batch], None] | None = None
        self._stores: dict[str, Any] = {}  # `stored_tokens` and `stored_pixels` of the data sets
        self._samples: dict[str, list[Sample]] = {}
        self._totals: dict[str, int] = {}
        self._datasets: dict[tuple[str, Preprocess], AnomalyDataset] = {}

    def serve_tokens(self, stored: StoredTokens) -> None:
        """Serves stored frozen tokens in place of images, which are then not decoded.

        Args:
            stored: Key of an image's pixels -> its tokens, or None where they are not stored.
        """
        self._stores["stored_tokens"] = stored
        self._datasets.clear()

    def encode_ahead(self, encode: Callable[[Batch], None]) -> None:
        """Lets what depends on a batch alone be computed for several batches at a time, before they are handed out.

        Args:
            encode: Puts it into a batch of training, validation or test; called in threads.
        """
        self._encode = encode

    def store_pixels(self, cache: TokenCache) -> None:
        """Keeps resized images of files in a cache on disk and reads them from there."""
        self._stores["stored_pixels"] = cache
        self._datasets.clear()

    # ---- what there is -----------------------------------------------------------------------------------------------

    def samples(self, side: str) -> list[Sample]:
        """The samples of a side, after its limit.

        Raises:
            UserError: No source for the side, an empty one, or training images without labels.
        """
        if side not in self._samples:
            if side == "train" and self.train_on == "references":
                self._samples[side] = self.picks.samples()
                return self._samples[side]
            source = self.sources[side]
            if source is None:
                raise UserError(f"no {side} set: choose one with source@dataset.{side}=NAME")
            found = source.samples(side)
            if not found:
                raise UserError(
                    f"{source.name} has no images for side {side}: choose another source@dataset.{side}=NAME"
                )
            check_categories(source.name, found)
            if side != "test":
                need_labels(found, f"the {side} set {source.name}")
            else:
                found = self._without_references(found)
            self._totals[side] = len(found)
            self._samples[side] = balanced(found, self.limits.get(side))
        return self._samples[side]

    def total(self, side: str) -> int:
        """How many samples a side has before its limit."""
        count = len(self.samples(side))
        return self._totals.get(side, count)

    def _without_references(self, found: list[Sample]) -> list[Sample]:
        """Test samples without the reference images of this run or of the checkpoint's memory."""
        if not self.picks.num_shots:
            return found
        if self.memory_images is None:
            picks = MemoryImages.of(self.picks.samples())
            found = [sample for sample in found if sample.path not in picks.paths]
            left, known = picks.without(found), "copies of references"
        else:
            left, known = (
                self.memory_images.without(found, roots_of(self.sources["test"])),
                "in the checkpoint's memory",
            )
        if len(left) < len(found):
            log.warning("%d of %d test images are %s and left out", len(found) - len(left), len(found), known)
        return left

    def references(self) -> list[References]:
        """The reference images as batches, one a category."""
        return self.references_of(self.picks.samples())

    def references_of(self, samples: Sequence[Sample]) -> list[References]:
        """Normal images as the batches that a few-shot method is fitted to, one a category."""
        preprocess, found = self._preprocess(), []
        for positions in positions_by_category(samples):
            rows = [samples[i] for i in positions]
            dataset = self.dataset_of(rows, name=f"references {rows[0].category}")
            batch = collate([dataset[i] for i in range(len(rows))])
            found.append(References(batch, partial(at_size, rows, preprocess), partial(changed, rows, preprocess)))
        return found

    def dataset_of(self, samples: Sequence[Sample], *, name: str = "") -> AnomalyDataset:
        """Further samples as a data set that is preprocessed, and served with tokens, as the sides are."""
        return AnomalyDataset(samples, self._preprocess(), name=name, **self._stores)

    @property
    def augmented(self) -> bool:
        """Whether training images are changed by mosaics, crops or augmentations."""
        if self.sources["train"] is None:
            return False
        return self.augment.changes({sample.dataset for sample in self.samples("train")})

    def check(self) -> None:
        """Looks at every file of all sides, in threads; see `check_files`."""
        sides = [self.samples(side) for side, source in self.sources.items() if source is not None]
        picked = self.picks.samples() if self.memory_images is None else []
        check_files(sample for samples in (*sides, picked) for sample in samples)

    # ---- loaders -----------------------------------------------------------------------------------------------------

    def dataset(self, side: str) -> AnomalyDataset:
        """The map-style data set of a side; mosaics and augmentations on side `train` only."""
        preprocess = self._preprocess()
        if side == "train":
            preprocess = replace(preprocess, mask_size=None)  # losses compare at the input's size
        key = (side, preprocess)
        if key not in self._datasets:
            self._datasets[key] = AnomalyDataset(
                self.samples(side),
                preprocess,
                seed=self.seed,
                augment=self.augment if side == "train" else None,
                cache=self._cache if self._is_read_again(side) else None,
                name=side,
                **self._stores,
            )
        return self._datasets[key]

    def _is_read_again(self, side: str) -> bool:
        return side in ("train", self.selection_side) or self.evaluations > 1

    def _preprocess(self) -> Preprocess:
        if self.preprocess is None:
            raise RuntimeError("preprocess is not set: the backbone decides about the pixels")
        return self.preprocess

    def first_batch(self) -> Batch:
        """What training meets first: one image, or all references of one category."""
        dataset = self.dataset("train")
        rows = positions_by_category(self.samples("train"))[0] if self.train_on == "references" else [0]
        return collate([dataset[i] for i in rows])

    def train_dataloader(self) -> DataLoader[Item]:
        """The training side, shuffled; of references one batch a category, the same on every process.

        After a resume, the first epoch continues where the checkpoint stopped.
        """
        dataset = self.dataset("train")
        if self.train_on == "references":
            batches = positions_by_category(self.samples("train"))
            order = {"categories": len(batches), "shots": self.picks.num_shots, "seed": self.seed}
            sampler: Any = BatchesSampler(batches, skip=self._progress(len(batches))[1])
            return TrainLoader(dataset, batch_sampler=sampler, order=order, **self._ahead())
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
        return TrainLoader(dataset, sampler=sampler, batch_size=self.batch_size, order=order, **self._ahead())

    def val_dataloader(self) -> Any:
        """The side that checkpoints are chosen on; no loader where none is."""
        if self.selection_side is None:
            return []
        return AheadLoader(**self._in_order(self.selection_side), **self._ahead())

    def test_dataloader(self) -> DataLoader[Item]:
        """The test side in order, with labels."""
        need_labels(self.samples("test"), "the test set")
        return AheadLoader(**self._in_order("test"), **self._ahead())

    def predict_dataloader(self, done: Collection[int] = ()) -> DataLoader[Item]:
        """The test side in order, labels or not.

        Args:
            done: Positions of images that are left out, by whole batches: the other batches are as they were.
        """
        if not done:
            return DataLoader(**self._in_order("test"), collate_fn=collate, **self._options())
        dataset, size = self.dataset("test"), self.eval_batch_size
        batches = [list(range(i, min(i + size, len(dataset)))) for i in range(0, len(dataset), size)]
        left = [batch for batch in batches if not all(i in done for i in batch)]
        return DataLoader(dataset, batch_sampler=BatchesSampler(left), collate_fn=collate, **self._options())

    def _in_order(self, side: str) -> dict[str, Any]:
        """Options of a loader that gives a side in order, this process its share."""
        dataset = self.dataset(side)
        rank, world_size = self._rank()
        sampler: Sampler[int] = ShardSampler(len(dataset), rank=rank, world_size=world_size)
        return {"dataset": dataset, "sampler": sampler, "batch_size": self.eval_batch_size}

    def _ahead(self) -> dict[str, Any]:
        return {"encode": self._encode, **self._options()}

    def _options(self) -> dict[str, Any]:
        # A generator of its own: a loader that draws from torch's global one would change a method's random numbers.
        return {
            "num_workers": self.num_workers,
            # without this, workers would restart and re-import everything in each epoch
            "persistent_workers": self.num_workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self, batches: int) -> tuple[int, int]:
        """The epoch to continue with, and how many of its batches a resumed run has used already."""
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
