"""The name of a run's own folder, when the user gives none: unique, and the same on all ranks of the run."""

import os
import secrets
from datetime import datetime, timedelta
from typing import Any

from dds_train.errors import UserError, first_line
from dds_train.runs.ranks import in_slurm_step, rank_and_world

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
    return _agree(own, env["MASTER_ADDR"], int(env["MASTER_PORT"]), rank, world)


def _agree(own: str, host: str, port: int, rank: int, world: int) -> str:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # torchrun's agent serves the store; elsewhere rank 0 does, and shares the port with the process group later.
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(host, port, world, serves, timedelta(minutes=5), wait_for_workers=False, multi_tenant=True)
        _stores.append(store)
        return str(store.compare_set("dds_train/stamp", "", own).decode())
    except (RuntimeError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"the processes of this run did not meet at {host}:{port} ({reason}); give output_dir=DIR") from error
