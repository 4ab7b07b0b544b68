"""This process among those of its run, by the launcher's environment. No torch here."""

import os


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes, as torchrun, srun or Lightning's launcher say; (0, 1) without one.

    Lightning gives its processes local ranks only: of them, nothing but whether this is rank 0 is certain.
    """
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]), int(env.get("WORLD_SIZE", 1))
    if in_slurm_step():
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
    return int(env.get("LOCAL_RANK", 0)) or int(env.get("NODE_RANK", 0)), int(env.get("WORLD_SIZE", 1))


def in_slurm_step() -> bool:
    """Whether srun started this process and others like it."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
