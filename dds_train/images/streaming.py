"""Input and output in threads, and batches that fit the device's memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from dds_train.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def batches(items: Sequence[T], size_of: Callable[[T], tuple[int, int]], limit: int) -> Iterator[list[T]]:
    """Items of one size together, up to `limit` of them."""
    for _, alike in groupby(sorted(items, key=size_of), key=size_of):
        same = list(alike)
        yield from (same[start : start + limit] for start in range(0, len(same), limit))


def read_ahead(read: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with `read(item)`, which runs in a thread while the item before is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


class WriteBehind:
    """Runs writes in threads. What is to follow a write (a line in a record) follows in the caller's thread and in order, at
    the latest when the block ends; errors of writes are raised there too.

    Args:
        workers: threads; at most twice as many writes wait, so that results do not pile up in memory.
    """

    def __init__(self, workers: int = 4) -> None:
        self.pool, self.limit = ThreadPoolExecutor(workers), 2 * workers
        self.waiting: deque[tuple[Future[None], Callable[[], None]]] = deque()

    def put(self, write: Callable[[], None], then: Callable[[], None]) -> None:
        self.waiting.append((self.pool.submit(write), then))
        while self.waiting and (self.waiting[0][0].done() or len(self.waiting) > self.limit):
            self._finish_first()

    def _finish_first(self) -> None:
        future, then = self.waiting.popleft()
        future.result()
        then()

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        try:
            while self.waiting:
                self._finish_first()
        finally:
            self.pool.shutdown(cancel_futures=True)


def within_memory(edit: Callable[[Sequence[T]], Iterable[Tensor]], items: Sequence[T], remedy: str) -> list[Tensor]:
    """`edit(items)`, a result for each; half of them at a time, and so on, where the device's memory does not hold more.

    Raises:
        UserError: if it does not hold one; `remedy` says what to do.
    """
    try:
        return list(edit(items))
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise UserError(f"one image does not fit into the device's memory; {remedy}") from error
    torch.cuda.empty_cache()
    half = len(items) // 2
    return within_memory(edit, items[:half], remedy) + within_memory(edit, items[half:], remedy)
