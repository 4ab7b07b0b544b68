"""This process among those of its launch, from the launcher's environment variables. No torch here."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dds_train.errors import UserError
from dds_train.runs.signals import end_now

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """A process among those that torchrun or srun has started together."""

    rank: int = 0
    world: int = 1
    launch: str | None = None  # a name that its processes share, and no other launch has

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of this rank: item i is that of rank i mod world."""
        return items[self.rank :: self.world]


ALONE = Ranks()


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes, as torchrun or srun set them; (0, 1) otherwise.

    Raises:
        UserError: if there is no such rank.
    """
    env = os.environ
    if "RANK" not in env and not in_slurm_step():
        return 0, 1
    of_rank, of_world = ("RANK", "WORLD_SIZE") if "RANK" in env else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    rank, world = env[of_rank], env.get(of_world, "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"environment variables {of_rank}={rank} and {of_world}={world}: no such rank; unset them")
    return int(rank), int(world)


def local_rank() -> int:
    """The rank of this process among those of its machine, as torchrun or srun set it; 0 otherwise."""
    return int(os.environ.get("LOCAL_RANK") or (in_slurm_step() and os.environ.get("SLURM_LOCALID")) or 0)


def is_first_rank() -> bool:
    """Whether this is rank 0, also among the processes that Lightning starts, which have local ranks only."""
    if rank_and_world()[1] > 1:
        return rank_and_world()[0] == 0
    return {os.environ.get(name, "0") for name in ("LOCAL_RANK", "NODE_RANK")} == {"0"}


def in_slurm_step() -> bool:
    """Whether srun started this process and others like it."""
    return "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def end_with_parent() -> None:
    """Let this rank end when its launcher has ended: alone it would wait for the others until a timeout."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end_now(1)

    threading.Thread(target=watch, daemon=True).start()
