"""Train a translator."""

import logging
import os
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dds_train import build
from dds_train.errors import UserError
from dds_train.training.callbacks import EMA, AtomicCheckpointIO, Checkpoints, SampleGrid, Throughput
from dds_train.training.data import SourceData
from dds_train.training.module import DistillationModule, Task
from dds_train.translator import TranslatorCard, export_translator, load_translator


def run(cfg: DictConfig) -> None:
    output_dir, began = Path(cfg.output_dir), time.time()
    resume = find_checkpoint(cfg.resume, output_dir)
    trainer = build_trainer(cfg, output_dir)
    pl.seed_everything(cfg.seed, verbose=False)
    device = build.build_device("cpu" if cfg.trainer.accelerator == "cpu" else cfg.device)
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # not every rank's teacher on the first card
    pretrained = build.build_pretrained(cfg.teacher, device)
    teacher, codec, text = pretrained.teacher(), pretrained.codec(), pretrained.text_encoder()
    task = Task(text.condition(cfg.source), text.condition(cfg.target), text.embed(cfg.instruction))
    shape = {"latent_channels": codec.channels, "text_dim": task.instruction.shape[-1]}
    card = TranslatorCard(
        source=cfg.source,
        target=cfg.target,
        instruction=cfg.instruction,
        teacher=pretrained.path,
        translator={**OmegaConf.to_container(cfg.translator, resolve=True), **shape},  # type: ignore[dict-item]
    )
    translator = build.build_translator(card.translator)
    module = DistillationModule(
        translator=translator,
        teacher=teacher,
        codec=codec,
        task=task,
        loss=build.build_loss(cfg.loss),
        guidance=build.build_ramp("guidance", cfg.guidance),
        identity=build.build_ramp("identity", cfg.identity),
        t_range=build.build_t_range(cfg.t_range, len(teacher.schedule)),
        optimizer=build.build_partial(cfg.optimizer),
        scheduler=build.build_partial(cfg.scheduler),
        seed=cfg.seed,
        card=card,
    )
    source = build.build_source(cfg.data, cfg.source, pretrained, teacher, codec)
    data = SourceData(source, cfg.batch_size, cfg.held_out, cfg.workers, cfg.seed)
    if resume:
        check_same_task(resume, card)
    if trainer.is_global_zero:
        build.keep_earlier_metrics(output_dir)
        build.save_config(cfg, output_dir)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero and not trainer.interrupted:
        notes = f"Trained for {trainer.global_step} steps of {cfg.batch_size} images on each of {trainer.world_size} devices.\n"
        # From the checkpoint: the averaged weights, also when the run was complete already.
        averaged, _ = load_translator(output_dir / "checkpoints" / "last.ckpt")
        export_translator(output_dir / "translator", averaged, card, notes)
        print(f"done in {(time.time() - began) / 60:.1f} minutes")
        print(f"translator  {output_dir / 'translator'}\npictures    {output_dir / 'pictures'}", flush=True)


def build_trainer(cfg: DictConfig, output_dir: Path) -> pl.Trainer:
    quiet_lightning()
    callbacks = [
        EMA(cfg.ema),
        SampleGrid(cfg.every.picture, output_dir / "pictures"),
        Throughput(cfg.every.log),
        Checkpoints(output_dir / "checkpoints", cfg.every.checkpoint, cfg.keep),
    ]
    try:
        return pl.Trainer(
            **OmegaConf.to_container(cfg.trainer, resolve=True),  # type: ignore[arg-type]
            max_epochs=1,  # of max_steps batches
            callbacks=callbacks,
            logger=build.build_loggers(cfg.logger, output_dir),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # StepBatches splits by rank itself
            log_every_n_steps=cfg.every.log,
            enable_model_summary=False,
            default_root_dir=output_dir,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


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


def find_checkpoint(resume: str, output_dir: Path) -> Path | None:
    """What to go on from: `auto` takes the run directory's last.ckpt if there is one."""
    if resume == "never":
        return None
    path = output_dir / "checkpoints" / "last.ckpt" if resume == "auto" else Path(resume)
    return path if path.exists() else None


def check_same_task(path: Path, card: TranslatorCard) -> None:
    _, saved = load_translator(path)
    for field in ("source", "target", "instruction", "teacher", "translator"):
        if getattr(saved, field) != getattr(card, field):
            raise UserError(
                f"{path} was trained with {field}={getattr(saved, field)!r}, now it is {getattr(card, field)!r}; "
                "take another output_dir, or resume=never to start over"
            )
    print(f"going on from {path}", flush=True)
