"""Names that the ranks of a launch share, and no other launch has: of its folder, when the user gives none, and its own."""

import os
import secrets
from datetime import datetime, timedelta
from typing import Any

from dds_train.errors import UserError, first_line
from dds_train.runs.ranks import ALONE, Ranks, in_slurm_step, rank_and_world

_stores: list[Any] = []  # that of rank 0 serves the others, as long as it lives


def run_stamp() -> str:
    """A name such as 2026-06-30_12-00-00-1f3a9c, or $DDS_RUN_STAMP where an earlier process of this run has set it.

    Under torchrun the first rank to ask chooses, and the others learn it through the launcher's own store, on any number of
    nodes; under srun it is the number of job and step (a job that is queued again goes on in its folder).

    Raises:
        UserError: if there are several processes and no way to agree.
    """
    env = os.environ
    if known := env.get("DDS_RUN_STAMP"):
        return known
    own = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"
    if "RANK" not in env and in_slurm_step():
        return f"slurm-{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', 0)}"
    rank, world = rank_and_world()
    if world == 1:
        return own
    if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
        raise UserError("WORLD_SIZE is set and MASTER_ADDR is not: give output_dir=DIR, which all processes then share")
    return _agree("dds_train/stamp", own, rank, world, "give output_dir=DIR")


def own_ranks() -> Ranks:
    """This process among those of its launch.

    Raises:
        UserError: if there are several processes and no way to agree on the name of their launch.
    """
    (rank, world), env = rank_and_world(), os.environ
    if world == 1:
        return ALONE
    if "RANK" not in env:
        numbers = [env.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
        return Ranks(rank, world, f"slurm-{'.'.join(numbers)}")
    if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
        raise UserError("WORLD_SIZE is set and MASTER_ADDR is not: start the processes by torchrun or srun")
    key = f"dds_train/launch-{env.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    return Ranks(rank, world, _agree(key, secrets.token_hex(8), rank, world, "start them again"))


def _agree(key: str, own: str, rank: int, world: int, remedy: str) -> str:
    """The same text on all ranks: `own` of the first to ask."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    # torchrun's agent serves the store; elsewhere rank 0 does, and shares the port with the process group later.
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(host, port, world, serves, timedelta(minutes=5), wait_for_workers=False, multi_tenant=True)
        _stores.append(store)
        return str(store.compare_set(key, "", own).decode())
    except (RuntimeError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"the processes of this run did not meet at {host}:{port} ({reason}); {remedy}") from error
