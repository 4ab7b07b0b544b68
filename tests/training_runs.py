"""Short training runs in this process, on a tiny random teacher, and in two that are forked from it."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dds_train.data.source import Sample
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.distillation import LOSSES
from dds_train.distillation.rng import seeded_rng
from dds_train.training.callbacks import EMA, SampleGrid, Throughput
from dds_train.training.checkpoints import AtomicCheckpointIO, Checkpoints
from dds_train.training.data import SourceData
from dds_train.training.faults import BadSamples, FiniteSteps
from dds_train.training.module import DistillationModule
from dds_train.training.schedules import Ramp
from dds_train.training.tasks import TaskBank
from dds_train.translator import Task, TranslatorConfig, UNetTranslator, all_prompts

SHAPE = {
    "kind": "unet",
    "latent_channels": 4,
    "text_dim": 32,
    "channels": [16, 32],
    "attention": [True, False],
    "depth": 1,
    "heads": 2,
    "groups": 8,
}


TASKS = {"lion": Task("a cat", "a lion", "a lion"), "dog": Task("a cat", "a dog", "to a dog")}


def latents() -> Dataset[Sample]:
    z = torch.randn(20, 4, 8, 8, generator=seeded_rng("latents"))
    return [{"z": one} for one in z]  # type: ignore[return-value]


def build(folder: Path, tasks: dict[str, Task] = TASKS, **changes: Any) -> DistillationModule:
    checkpoint = DiffusionCheckpoint(str(folder))
    prompts = PromptTable.of(checkpoint.text_encoder(), all_prompts(tasks.values()))
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "translator": UNetTranslator(**{k: v for k, v in SHAPE.items() if k != "kind"}),
        "teacher": checkpoint.teacher(),
        "autoencoder": checkpoint.autoencoder(),
        "tasks": TaskBank.embed(tasks, prompts),
        "loss": LOSSES["dds"],
        "guidance": Ramp(1.0, 3.0, 0.5),
        "identity": Ramp(1.0, 0.1, 1.0),
        "t_range": (50, 950),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
        "scheduler": lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
        "seed": 0,
        "translator_config": TranslatorConfig(tasks, str(folder), SHAPE),
    }
    return DistillationModule(**{**arguments, **changes})


RAW_AND_AVERAGED = ("current_model_state", "state_dict")


def trainer(
    folder: Path,
    max_steps: int,
    more: Sequence[pl.Callback] = (),
    checkpoints: Checkpoints | None = None,
    max_bad_fraction: float = 0.5,
    **changes: Any,
) -> pl.Trainer:
    previews = SampleGrid(4, folder / "previews", lambda z: z[:, :3].clamp(-1, 1))
    faults = BadSamples(folder / "bad.txt", max_bad_fraction), FiniteSteps(folder / "skipped.txt", patience=3)
    checkpoints = checkpoints or Checkpoints(folder / "ckpt", every=3, keep=1)
    return pl.Trainer(
        max_steps=max_steps,
        max_epochs=1,
        accelerator="cpu",
        callbacks=[*more, EMA(0.9), previews, *faults, Throughput(2), checkpoints],
        check_val_every_n_epoch=None,
        val_check_interval=min(2, max_steps) * changes.get("accumulate_grad_batches", 1),
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **changes,
    )


def fit(module: DistillationModule, trainer: pl.Trainer, resume: Path | None = None) -> dict[str, Tensor]:
    data = SourceData(latents(), batch_size=3, held_out=4, workers=0, seed=0)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def two_ranks(run: Callable[[int], Any]) -> list[Any]:
    """What `run(rank)` returns on each of two ranks (gloo), or "NAME: MESSAGE" of what it raises."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_RUN_ID": "test"}
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}

    def main(rank: int, ours: Any) -> None:
        os.environ |= {**address, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        try:
            result = run(rank)
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        ours.send(result)

    ends = [multiprocessing.Pipe() for _ in range(2)]
    processes = [multiprocessing.get_context("fork").Process(target=main, args=(rank, end[1])) for rank, end in enumerate(ends)]
    for process in processes:
        process.start()
    try:
        return [end[0].recv() if end[0].poll(60) else "hangs" for end in ends]
    finally:
        for process in processes:
            process.kill()
