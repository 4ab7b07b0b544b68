"""Train a translator."""

import contextlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dds_train import build
from dds_train.cli.schema import FitConfig
from dds_train.data.augment import FlipAndZoom
from dds_train.data.shards import ShardSource
from dds_train.data.source import Source
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.errors import UserError
from dds_train.runs.digest import digest
from dds_train.runs.ranks import is_first_rank
from dds_train.runs.record import Record
from dds_train.training.callbacks import EMA, SampleGrid, Throughput
from dds_train.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    Checkpoints,
    ResumePoint,
    SaveOnSignal,
    find_checkpoint,
)
from dds_train.training.data import SourceData
from dds_train.training.module import DistillationModule
from dds_train.training.sentinels import BadSamples, FiniteSteps, Sentinels
from dds_train.training.summary import summary
from dds_train.training.tasks import TaskBank
from dds_train.training.validation import CritterValidation
from dds_train.translator import Task, TranslatorConfig, all_prompts, export_translator, read_weights

# Settings that may differ from those of the run in output_dir; of trainer.max_steps see `run`.
FREE = (
    "trainer.max_steps", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator",
    "trainer.enable_progress_bar", "scheduler.num_training_steps", "workers", "device", "gradient_checkpointing", "logger",
    "log_every", "preview_every", "validate_every", "checkpoint_every", "keep_checkpoints", "preview", "validation", "best",
    "sentinels", "max_bad_fraction", "data.batch_size", "data.cache", "resume", "output_dir",
)  # fmt: skip
# Of a run, which resume=never puts aside.
FILES = (
    "checkpoints", "translator", "pictures", "metrics*.csv", "config.yaml", "bad_samples.txt", "skipped_steps.txt",
    "tensorboard", "wandb",
)  # fmt: skip


def run(cfg: FitConfig) -> None:
    with Record(cfg.output_dir, "fit", rank=0 if is_first_rank() else 1) as record:
        resume = find_checkpoint(cfg.resume, record.folder / "checkpoints")
        device = build.build_rank_device("cpu" if cfg.trainer.accelerator == "cpu" else cfg.device)
        checkpoint = build.build_checkpoint(cfg.teacher, device)
        occupied = cfg.resume != "never" and any((record.folder / "checkpoints").glob("*.ckpt"))
        terms = claim_terms(cfg, checkpoint, occupied)
        if cfg.resume != "never":
            record.check(**terms)
            if record.is_done("translator", result_digest(cfg)):
                print(f"finished already, {cfg.trainer.max_steps} training steps: {record.folder / 'translator'}", flush=True)
                return
        if resume and resume.step > cfg.trainer.max_steps:
            raise UserError(
                f"trainer.max_steps={cfg.trainer.max_steps}: {resume.path} has {resume.step} training steps; "
                "give at least as many, another output_dir, or resume=never to start over"
            )
        train(cfg, checkpoint, resume, record, terms)


def train(
    cfg: FitConfig, checkpoint: DiffusionCheckpoint, resume: ResumePoint | None, record: Record, terms: dict[str, Any]
) -> None:
    output_dir, began = record.folder, time.time()
    # All that can be wrong with the configuration first: drawing source images takes a while.
    tasks, settings, trainer = build.build_tasks(cfg), build_settings(cfg), build_trainer(cfg, output_dir)
    pl.seed_everything(cfg.seed, verbose=False)
    source = build.build_source(cfg.data, tasks.values(), checkpoint)
    source.prepare()
    bank = embed_tasks(source, tasks, getattr(cfg.loss, "negative", None), checkpoint)
    data = SourceData(source.dataset(), cfg.batch_size, cfg.held_out, cfg.workers, cfg.seed, augmentation(cfg))

    teacher = checkpoint.teacher()
    check_latents(data, teacher.latent_shape)
    check_precision(cfg, teacher.dtype)
    translator = build.build_translator(cfg.translator, teacher)
    if cfg.gradient_checkpointing:
        translator.enable_gradient_checkpointing()
        teacher.enable_gradient_checkpointing()  # for losses that differentiate it
    module = DistillationModule(
        translator=translator,
        teacher=teacher,
        autoencoder=checkpoint.autoencoder() if "image" in data.held_out else None,
        tasks=bank,
        t_range=build.build_t_range(cfg.t_range, len(teacher.schedule), cfg.loss.model_dump()),
        translator_config=TranslatorConfig(tasks=tasks, teacher=checkpoint.path, translator=translator.config),
        **settings,
    )
    # In front, because scores want the averaged weights, and the hook of EMA puts the raw ones back.
    trainer.callbacks[:0] = pictures_and_scores(cfg, tasks, source, data, checkpoint)  # type: ignore[attr-defined]
    if resume and cfg.resume != "auto":
        check_same_task(resume, module.translator_config, terms["settings"]["teacher"])
    if trainer.is_global_zero:
        if cfg.resume == "never":
            record.start_over(FILES)
        record.claim(**terms)
        build.keep_earlier_metrics(output_dir)
        build.save_config(cfg, output_dir)
        if resume:
            print(f"resuming from {resume.path}, at training step {resume.step}", flush=True)
        print(summary(module, cfg.batch_size, cfg.trainer.precision, cfg.gradient_checkpointing), flush=True)
    trainer.fit(module, datamodule=data, ckpt_path=resume.path if resume else None, weights_only=True)
    if trainer.is_global_zero and not trainer.interrupted:
        record.strike("translator")
        finish(cfg, trainer, module)
        files = [f"translator/{name}" for name in ("translator.safetensors", "config.json")]
        record.add("translator", result_digest(cfg), files, {"steps": trainer.global_step})
        print(f"done in {(time.time() - began) / 60:.1f} minutes")
        print(f"translator  {output_dir / 'translator'}\npictures    {output_dir / 'pictures'}", flush=True)


def claim_terms(cfg: FitConfig, checkpoint: DiffusionCheckpoint, occupied: bool) -> dict[str, Any]:
    """What the record is told of this run."""
    teacher: dict[str, str] = {"dtype": cfg.teacher.dtype}
    for part in ("denoiser", "scheduler", "vae", "text"):
        with contextlib.suppress(UserError):  # not there, and perhaps not needed
            teacher[part] = checkpoint.digest(part)
    return {
        "settings": {**cfg.model_dump(), "teacher": teacher},
        "free": FREE,
        "growing": ["teacher"],
        "occupied": occupied,
        "remedy": "give another output_dir, or resume=never to start over",
    }


def result_digest(cfg: FitConfig) -> str:
    """The identity of the translator, besides the settings that the folder is claimed for."""
    return digest({"max_steps": cfg.trainer.max_steps})


def build_settings(cfg: FitConfig) -> dict[str, Any]:
    """Of the module: what needs no model."""
    return {
        "tasks_per_image": cfg.tasks_per_image,
        "loss": build.build_loss(cfg.loss.model_dump()),
        "guidance": build.build_ramp(cfg.guidance),
        "identity": build.build_ramp(cfg.identity),
        "optimizer": build.build_partial(cfg.optimizer),
        "scheduler": build.build_partial(cfg.scheduler),
        "seed": cfg.seed,
    }


def embed_tasks(source: Source, tasks: dict[str, Task], negative: str | None, checkpoint: DiffusionCheckpoint) -> TaskBank:
    """From the table beside the shards; the text encoder is loaded only for what that lacks, and let go."""
    captions = source.captions if any(task.needs_captions for task in tasks.values()) else ()
    table = (source.prompts if isinstance(source, ShardSource) else None) or PromptTable({})
    said = [*all_prompts(tasks.values(), captions), *([negative] if negative else [])]
    table = table.completed(said, checkpoint.text_encoder)
    checkpoint.release("text_encoder")
    return TaskBank.embed(tasks, table, captions, negative)


def augmentation(cfg: FitConfig) -> FlipAndZoom | None:
    return FlipAndZoom(cfg.augment.flip, cfg.augment.zoom) if cfg.augment.flip or cfg.augment.zoom < 1 else None


def check_latents(data: SourceData, shape: tuple[int, ...]) -> None:
    z = data.held_out.get("z")
    if z is not None and z.shape[1] != shape[0]:
        raise UserError(f"data: latents of {z.shape[1]} channels, the teacher's have {shape[0]}; take their own teacher")
    if z is not None and data.augments:
        raise UserError("augment: needs images, and this data set delivers latents; take data.latents=false, or leave it out")


def check_precision(cfg: FitConfig, dtype: torch.dtype) -> None:
    if cfg.translator.kind == "lora" and dtype != torch.float32 and not str(cfg.trainer.precision).endswith("mixed"):
        raise UserError(
            f"trainer.precision={cfg.trainer.precision}: translator=lora runs on the teacher's weights, here {dtype}; "
            "take trainer.precision=bf16-mixed, or teacher.dtype=float32"
        )


def pictures_and_scores(
    cfg: FitConfig, tasks: dict[str, Task], source: Source, data: SourceData, checkpoint: DiffusionCheckpoint
) -> list[pl.Callback]:
    """What training shows; loads the codec only if something needs it, and lets it go if nothing does."""
    preview = source.preview if isinstance(source, ShardSource) else None
    if cfg.preview == "linear" and preview is None:
        raise UserError("preview=linear: needs shards with latents that synthesize made; take preview=vae")
    roughly = preview is not None and (cfg.preview == "linear" or (cfg.preview == "auto" and not cfg.validation.count))
    if roughly and not cfg.validation.count and "image" not in data.held_out:
        checkpoint.release("autoencoder")
    decode: Any = preview if roughly else checkpoint.autoencoder().decode
    callbacks: list[pl.Callback] = [SampleGrid(cfg.preview_every, Path(cfg.output_dir) / "pictures", decode)]
    if cfg.validation.count:
        callbacks.append(critter_validation(cfg, tasks, checkpoint))
    return callbacks


def critter_validation(cfg: FitConfig, tasks: dict[str, Task], checkpoint: DiffusionCheckpoint) -> CritterValidation:
    return CritterValidation(tasks, checkpoint.autoencoder(), cfg.validation.count, cfg.validation.source)


def build_trainer(cfg: FitConfig, output_dir: Path) -> pl.Trainer:
    quiet_lightning()
    checkpoints = output_dir / "checkpoints"
    accumulate = cfg.trainer.accumulate_grad_batches
    try:
        callbacks: list[pl.Callback] = [
            EMA(cfg.ema),
            BadSamples(output_dir / "bad_samples.txt", cfg.max_bad_fraction),
            FiniteSteps(output_dir / "skipped_steps.txt"),
            build_sentinels(cfg),
            Throughput(cfg.log_every),
            Checkpoints(checkpoints, cfg.checkpoint_every, cfg.keep_checkpoints),
            *([BestCheckpoint(checkpoints, cfg.best.metric, cfg.best.mode)] if cfg.best.metric else []),
            SaveOnSignal(checkpoints),
        ]
        return pl.Trainer(
            **cfg.trainer.model_dump(),
            max_epochs=1,  # of max_steps batches
            callbacks=callbacks,
            logger=build.build_loggers(cfg.logger, output_dir),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # StepBatches splits by rank itself
            log_every_n_steps=cfg.log_every,
            check_val_every_n_epoch=None,
            val_check_interval=min(cfg.validate_every, cfg.trainer.max_steps) * accumulate,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            default_root_dir=output_dir,
        )
    except UserError:
        raise
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


def build_sentinels(cfg: FitConfig) -> Sentinels:
    try:
        return Sentinels(**cfg.sentinels.model_dump())
    except ValueError as error:
        raise UserError(str(error)) from error


def quiet_lightning() -> None:
    """Device lists, advertisements, and warnings about what is done on purpose here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # latents need none; a slow loader shows in images/s
        ".*exists and is not empty.*",  # a run that goes on
        ".*your dataloader is not resumable.*",  # StepBatches starts where the checkpoint ended
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # Lightning's own
    ):
        warnings.filterwarnings("ignore", message=message)


def finish(cfg: FitConfig, trainer: pl.Trainer, module: DistillationModule) -> None:
    """Export the averaged weights, from the checkpoint: also when the run was complete already."""
    notes = f"Trained for {trainer.global_step} steps of {cfg.batch_size} images on each of {trainer.world_size} devices.\n"
    output_dir = Path(cfg.output_dir)
    module.translator.load_state_dict(read_weights(output_dir / "checkpoints" / "last.ckpt"))
    export_translator(output_dir / "translator", module.translator, module.translator_config, notes)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
            print(f"best        {cfg.best.metric}={callback.best_model_score:.3f}: {callback.best_model_path}")
        if isinstance(callback, BadSamples) and callback.seen:
            print(f"bad samples {len(callback.seen)} left out, named in {callback.path}")
        if isinstance(callback, FiniteSteps) and callback.total:
            print(f"skipped     {callback.total} steps whose gradient was not finite, named in {callback.path}")


def check_same_task(resume: ResumePoint, config: TranslatorConfig, teacher: dict[str, str]) -> None:
    """Refuse a checkpoint of another run whose tasks, translator or teacher are others."""
    for field in ("tasks", "translator"):
        before, now = getattr(resume.config, field), getattr(config, field)
        if before != now:
            raise UserError(f"resume={resume.path}: was trained with other {field} ({before!r}, now {now!r})")
    known = Record(resume.path.absolute().parents[1], "fit").settings.get("teacher", {})
    if any(known[part] != teacher[part] for part in known.keys() & teacher.keys()):
        raise UserError(f"resume={resume.path}: was trained with another teacher than teacher.path={config.teacher}")
