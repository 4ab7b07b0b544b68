"""Input and output in threads, and batches that fit the device's memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from dds_train.errors import UserError

T = TypeVar("T")
K = TypeVar("K")
AHEAD = 1024  # items


def batches(items: Iterable[T], key_of: Callable[[T], K], limit: Callable[[K], int], ahead: int = AHEAD) -> Iterator[list[T]]:
    """Items of one key together, up to `limit(key)` of them, as they come: at most `ahead` wait for others of their key."""
    groups: dict[K, list[T]] = {}
    waiting = 0
    for item in items:
        key = key_of(item)
        groups.setdefault(key, []).append(item)
        waiting += 1
        if len(groups[key]) < limit(key):
            if waiting <= ahead:
                continue
            key = next(iter(groups))  # whose first item waits longest
        waiting -= len(groups[key])
        yield groups.pop(key)
    yield from groups.values()


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """`items`, the next of which is made in a thread while the one before is in use."""
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: list(islice(source, 1)))
        while item := future.result():
            future = pool.submit(lambda: list(islice(source, 1)))
            yield item[0]


def begun(items: Iterator[T]) -> Iterator[T]:
    """`items`, the first of which is made now: what is wrong with it is said before anything else happens."""
    return chain(list(islice(items, 1)), items)


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
