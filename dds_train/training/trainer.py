"""Lightning's Trainer for a training run, and its end."""

import contextlib
import logging
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies.launchers import subprocess_script

from dds_train.errors import UserError, first_line
from dds_train.runs.ranks import in_slurm_step
from dds_train.runs.signals import GRACE, end_now
from dds_train.training.callbacks import EMA, Throughput
from dds_train.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, Checkpoints, SaveOnSignal
from dds_train.training.claim import TrainingClaim
from dds_train.training.data import SourceData
from dds_train.training.faults import BadSamples, FiniteSteps
from dds_train.training.loggers import keep_earlier_metrics
from dds_train.training.module import DistillationModule
from dds_train.training.sentinels import Sentinels
from dds_train.translator import export_translator, read_weights

TIMEOUT = timedelta(minutes=10)  # of a collective: a rank alone writes checkpoints and previews meanwhile


def make_trainer(
    folder: Path,
    options: Mapping[str, Any],
    loggers: Sequence[Logger],
    sentinels: Sentinels,
    *,
    ema: float,
    max_bad_fraction: float,
    log_every: int,
    validate_every: int,
    checkpoint_every: int,
    keep_checkpoints: int,
    best: Mapping[str, str | None],
) -> pl.Trainer:
    """A trainer with all callbacks but those that need a model.

    Args:
        folder: of checkpoints and reports.
        options: arguments of Lightning's Trainer.
        best: the logged "metric" whose best checkpoint is kept as best.ckpt, or None, and its "mode", max or min.

    Raises:
        UserError: with Lightning's reason, if it refuses the options.
    """
    _quiet_lightning()
    checkpoints = folder / "checkpoints"
    callbacks: list[pl.Callback] = [
        EMA(ema),
        BadSamples(folder / "bad_samples.txt", max_bad_fraction),
        FiniteSteps(folder / "skipped_steps.txt"),
        sentinels,
        Throughput(log_every),
        Checkpoints(checkpoints, checkpoint_every, keep_checkpoints),
        *([BestCheckpoint(checkpoints, str(best["metric"]), str(best["mode"]))] if best["metric"] else []),
        SaveOnSignal(checkpoints),
    ]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if "SLURM_NTASKS" in os.environ and not in_slurm_step() and not torch.distributed.is_torchelastic_launched():
        plugins.append(LightningEnvironment())  # inside a job, but not started by srun, which is Lightning's guess
    try:
        trainer = pl.Trainer(
            **options,
            max_epochs=1,  # of max_steps batches
            callbacks=callbacks,
            logger=loggers,
            plugins=plugins,
            use_distributed_sampler=False,  # StatelessBatchSampler splits by rank itself
            log_every_n_steps=log_every,
            check_val_every_n_epoch=None,
            val_check_interval=min(validate_every, options["max_steps"]) * options["accumulate_grad_batches"],
            num_sanity_val_steps=0,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        if environment := getattr(trainer.strategy, "cluster_environment", None):
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {first_line(error)}") from error
    _own_signals(trainer)
    return trainer


def _own_signals(trainer: pl.Trainer) -> None:
    """Leave signals and ranks that end to this package.

    Lightning's handler for SIGTERM calls a collective, in which a rank that alone has the signal hangs; and its observer kills
    the first rank, whatever that still does, when another has ended.
    """
    trainer._signal_connector.register_signal_handlers = _no_handlers  # type: ignore[method-assign]
    subprocess_script._launch_process_observer = _end_with_ranks  # type: ignore[assignment,attr-defined]
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = TIMEOUT


def _no_handlers() -> None:
    """A function, not a lambda: some strategies pickle the trainer."""


def _end_with_ranks(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process some time after a rank that it has started has failed: it would wait for that rank."""

    def watch() -> None:
        while not (code := _failed(ranks)):
            time.sleep(0.5)
        time.sleep(GRACE)
        end_now(code)

    threading.Thread(target=watch, daemon=True).start()


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of a rank that has failed, 128 + N if signal N has killed it; 0 if none has."""
    code: int = next((rank.returncode for rank in ranks if rank.poll()), 0)
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _other_ranks_ending(trainer: pl.Trainer) -> Iterator[None]:
    """Turn the error of a collective that another rank has left into the exit code of that rank, or a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        ranks, deadline = getattr(trainer.strategy.launcher, "procs", []), time.monotonic() + 3
        while ranks and time.monotonic() < deadline:
            if code := _failed(ranks):
                raise SystemExit(code) from error
            time.sleep(0.1)
        reason = first_line(error)
        raise UserError(f"trainer: another rank has ended, or is out of reach ({reason}); the same command resumes") from error


def check_precision(precision: str, kind: str, dtype: torch.dtype) -> None:
    """Refuse a translator of that kind that would be trained on half-precision weights of the teacher without autocast."""
    if kind == "lora" and dtype != torch.float32 and not precision.endswith("mixed"):
        raise UserError(
            f"trainer.precision={precision}: translator=lora runs on the teacher's weights, here {dtype}; "
            "take trainer.precision=bf16-mixed, or teacher.dtype=float32"
        )


def train(
    trainer: pl.Trainer,
    module: DistillationModule,
    data: SourceData,
    claim: TrainingClaim,
    previews: Sequence[pl.Callback],
    size: str,
    save_config: Callable[[Path], None],
) -> None:
    """Train, and export the translator.

    Args:
        claim: on the folder, which the first rank makes and fulfils.
        previews: callbacks that need a model.
        size: of the model, in lines to print.
        save_config: writes the configuration into a folder.
    """
    began, folder, resume = time.time(), claim.folder, claim.resume
    # In front, because validation needs the averaged weights, and the hook of EMA puts the raw ones back.
    trainer.callbacks[:0] = previews  # type: ignore[attr-defined]
    claim.check_resumed(module.translator_config)
    if trainer.is_global_zero:
        claim.start()
        if not resume or resume.step < trainer.max_steps:
            keep_earlier_metrics(folder)
        else:
            trainer.loggers = []  # nothing to log, and Lightning's logger would delete metrics.csv
        save_config(folder)
        if resume:
            print(f"resuming from {resume.path}, at training step {resume.step}", flush=True)
        print(size, flush=True)
    with _other_ranks_ending(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=resume.path if resume else None, weights_only=True)
    if trainer.is_global_zero and not trainer.interrupted:
        claim.record.strike("translator")
        for line in _export(trainer, module, folder, data.batch_size):
            print(line)
        claim.finish(trainer.global_step)
        print(f"done in {(time.time() - began) / 60:.1f} minutes")
        print(f"translator  {folder / 'translator'}\npreviews    {folder / 'previews'}", flush=True)


def _export(trainer: pl.Trainer, module: DistillationModule, folder: Path, batch_size: int) -> list[str]:
    """Export the averaged weights of the last checkpoint to translator/; what the callbacks report, a line each."""
    notes = f"Trained for {trainer.global_step} steps of {batch_size} images on each of {trainer.world_size} devices.\n"
    module.translator.load_state_dict(read_weights(folder / "checkpoints" / "last.ckpt"))
    export_translator(folder / "translator", module.translator, module.translator_config, notes)
    lines = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
            lines.append(f"best        {callback.monitor}={callback.best_model_score:.3f}: {callback.best_model_path}")
        if isinstance(callback, BadSamples) and callback.report.lines:
            lines.append(f"bad samples {len(callback.report.lines)} left out, named in {callback.report.path}")
        if isinstance(callback, FiniteSteps) and callback.total:
            lines.append(f"skipped     {callback.total} steps whose gradient was not finite, named in {callback.report.path}")
    return lines


def _quiet_lightning() -> None:
    """No device lists, no advertisements, and no warnings about what is done on purpose here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # latents need none; a slow loader shows in images/s
        ".*exists and is not empty.*",  # a run that resumes
        ".*your dataloader is not resumable.*",  # StatelessBatchSampler starts where the checkpoint ended
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # Lightning's own
    ):
        warnings.filterwarnings("ignore", message=message)
