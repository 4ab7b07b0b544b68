"""Aspect buckets: images in a few shapes of about equal area instead of squares, in batches of one shape each."""

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch.utils.data import Dataset, Sampler

from dds_train.data.batches import Place
from dds_train.data.source import Sample, StorageError
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError
from dds_train.runs.ranks import is_first_rank

Shape = tuple[int, int]  # (height, width) in pixels
NARROWEST = 0.7  # shorter side of a bucket over that of the square


class ImageDataset(Protocol):
    """Images that can be had in any shape; as items they are squares."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def name(self, index: int) -> str: ...
    def original_shape(self, index: int) -> Shape:
        """Of the file, read from its header."""
        ...

    def shaped(self, index: int, shape: Shape) -> Sample:
        """The sample, its image resized to cover `shape` and cropped to it."""
        ...


def bucket_shapes(side: int, unit: int) -> list[Shape]:
    """The square and, on both sides of it, shapes of about its area whose sides are multiples of `unit` pixels."""
    step = max(unit, round(side / 8 / unit) * unit)
    shorter = range(side // unit * unit - step, math.ceil(NARROWEST * side) - 1, -step)
    pairs = [(side, side), *((a, round(side**2 / a / unit) * unit) for a in shorter)]
    return sorted({shape for a, b in pairs for shape in ((a, b), (b, a))})


def nearest_shape(size: Shape, shapes: Sequence[Shape]) -> Shape:
    """The shape whose aspect ratio is nearest to that of `size`: the least is cropped."""
    return min(shapes, key=lambda shape: abs(math.log(shape[0] * size[1] / (shape[1] * size[0]))))


class BucketedDataset(Dataset[Sample]):
    """Images, each in the shape of its bucket.

    Args:
        squares: the same images as squares.
        shapes: of each image.
    """

    def __init__(self, squares: ImageDataset, shapes: Sequence[Shape]) -> None:
        self.squares, self.shapes = squares, shapes

    def __len__(self) -> int:
        return len(self.squares)

    def name(self, index: int) -> str:
        return self.squares.name(index)

    def __getitem__(self, index: int) -> Sample:
        return self.squares.shaped(index, self.shapes[index])


def bucketed(squares: ImageDataset, shapes: Sequence[Shape]) -> BucketedDataset:
    """The images, each in the nearest of `shapes`. Reads all headers, and prints how many images each shape has."""

    def shape_of(index: int) -> Shape:
        try:
            return nearest_shape(squares.original_shape(index), shapes)
        except StorageError:
            raise
        except UserError:  # reading it as an image says why, when its turn comes
            return nearest_shape((1, 1), shapes)

    found = [shape_of(index) for index in range(len(squares))]
    if is_first_rank():
        counts = sorted(Counter(found).items())
        print("buckets:", ", ".join(f"{count} of {width} x {height}" for (height, width), count in counts), flush=True)
    return BucketedDataset(squares, found)


class BucketBatchSampler(Sampler[list[Place]]):
    """`StatelessBatchSampler` for images in buckets: the batches of all ranks at one step are of one bucket.

    Each bucket is an endless shuffle of its own, in which every image comes once before any comes twice. An epoch has the whole
    steps that the images of each bucket make, in random order; a bucket's rest begins its first step of the next epoch, so that
    no image is left out or comes more often. A bucket of fewer images than a step has comes in some epochs only, and then with
    some images several times in a batch.

    Args:
        buckets: of each image.
        batch_size: images per step and rank.
    """

    def __init__(
        self, buckets: Sequence[Shape], batch_size: int, first: int, last: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size, self.first, self.last = batch_size, first, last
        self.seed, self.rank, self.step_size = seed, rank, batch_size * world_size
        members: dict[Shape, list[int]] = {}
        for index, shape in enumerate(buckets):
            members.setdefault(shape, []).append(index)
        self._members = [members[shape] for shape in sorted(members)]
        self._size = len(buckets)
        self._epoch, self._steps = -1, list[tuple[int, int]]()  # of an epoch: (bucket, number of the bucket's step)
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}  # of each bucket: round and shuffle

    def __len__(self) -> int:
        return self.last  # as that of `StatelessBatchSampler`

    def __iter__(self) -> Iterator[list[Place]]:
        for number in range(self.first, self.last):
            start = number * self.step_size + self.rank * self.batch_size
            yield [(position, self.index_at(position)) for position in range(start, start + self.batch_size)]

    def index_at(self, position: int) -> int:
        """The index of an image, by its position in the endless order."""
        step, row = divmod(position, self.step_size)
        # Epochs that surely have this step: a bucket's rest is less than a step.
        enough = (step + len(self._members) + 1) * self.step_size // self._size + 2
        epoch = bisect.bisect_right(range(enough), step, key=lambda epoch: sum(self._steps_before(epoch + 1)))
        if epoch != self._epoch:
            begun, ends = self._steps_before(epoch), self._steps_before(epoch + 1)
            buckets = torch.arange(len(ends)).repeat_interleave(torch.tensor(ends) - torch.tensor(begun))
            shuffle = torch.randperm(len(buckets), generator=seeded_rng(self.seed, "buckets", epoch))
            numbers = [itertools.count(start) for start in begun]
            self._epoch, self._steps = epoch, [(one, next(numbers[one])) for one in buckets[shuffle].tolist()]
        bucket, number = self._steps[step - sum(self._steps_before(epoch))]
        return self._image(bucket, number * self.step_size + row)

    def _steps_before(self, epoch: int) -> list[int]:
        """Of each bucket, the steps of all epochs before `epoch`."""
        return [epoch * len(members) // self.step_size for members in self._members]

    def _image(self, bucket: int, place: int) -> int:
        """The index of an image, by its place in the endless shuffle of a bucket."""
        members = self._members[bucket]
        number, row = divmod(place, len(members))
        if self._orders.get(bucket, (-1,))[0] != number:
            rng = seeded_rng(self.seed, "bucket", bucket, number)
            self._orders[bucket] = number, torch.randperm(len(members), generator=rng)
        return members[int(self._orders[bucket][1][row])]
