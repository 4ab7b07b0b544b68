"""Train a translator."""

import pytorch_lightning as pl

from dds_train.cli.instantiate import make
from dds_train.cli.schema import FitConfig
from dds_train.commands import make_checkpoint
from dds_train.data.augment import make_augment
from dds_train.data.source import make_source
from dds_train.diffusion.device import find_rank_device
from dds_train.distillation import make_loss
from dds_train.runs.ranks import Ranks, is_first_rank
from dds_train.runs.record import Record
from dds_train.training.claim import TrainingClaim
from dds_train.training.data import SourceData
from dds_train.training.loggers import make_loggers, resolved_offline
from dds_train.training.module import DistillationModule
from dds_train.training.previews import make_previews
from dds_train.training.schedules import Ramp
from dds_train.training.sentinels import Sentinels
from dds_train.training.summary import summary
from dds_train.training.tasks import embed_tasks
from dds_train.training.trainer import check_precision, make_trainer, train
from dds_train.translator import TranslatorConfig, make_tasks, make_translator, remembered

TRAINER = {"ema", "max_bad_fraction", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "best"}


def run(config: FitConfig) -> None:
    with Record(config.output_dir, "fit", Ranks(0 if is_first_rank() else 1)) as record:
        device = find_rank_device("cpu" if config.trainer.accelerator == "cpu" else config.device)
        checkpoint = make_checkpoint(config.teacher, device)
        claim = TrainingClaim(record, config.model_dump(), checkpoint)
        if claim.is_finished:
            print(f"finished already, {claim.max_steps} training steps: {record.folder / 'translator'}", flush=True)
            return
        # First whatever can be wrong with the configuration: synthesizing source images takes a while.
        tasks = make_tasks(**config.model_dump(include={"tasks", "source", "target", "instruction"}))
        options = config.loss.model_dump()
        negative, loss = options.pop("negative", None), make_loss(**options)
        checkpoint.check_guidance(config.loss.name, config.guidance.end, "guidance.end")
        optimizer, scheduler, source_class = make(config.optimizer), make(config.scheduler), make(config.data)
        logger = make(extra, **resolved_offline(extra.model_dump())) if (extra := config.logger.extra) else None
        trainer = make_trainer(
            record.folder,
            config.trainer.model_dump(),
            make_loggers(record.folder, logger),
            Sentinels(**config.sentinels.model_dump()),
            **config.model_dump(include=TRAINER),
        )
        pl.seed_everything(config.seed, verbose=False)
        source = make_source(source_class.func, source_class.keywords, checkpoint, [task.source for task in tasks.values()])
        source.prepare()
        bank, augment = embed_tasks(tasks, source, checkpoint, negative), make_augment(**config.augment.model_dump())
        data = SourceData(source.dataset(), config.batch_size, config.held_out, config.workers, config.seed, augment)
        teacher = checkpoint.teacher()
        data.check_latents(teacher.latent_shape)
        check_precision(config.trainer.precision, config.translator.kind, teacher.dtype)
        translator = make_translator(config.translator.model_dump(), lambda: teacher.network, teacher.family)
        for network in (translator, teacher) if config.gradient_checkpointing else ():  # the teacher's for losses through it
            network.enable_gradient_checkpointing()
        module = DistillationModule(
            translator=translator,
            teacher=teacher,
            autoencoder=checkpoint.autoencoder() if "image" in data.held_out else None,
            tasks=bank,
            tasks_per_image=config.tasks_per_image,
            loss=loss,
            guidance=Ramp(**config.guidance.model_dump()),
            identity=Ramp(**config.identity.model_dump()),
            t_range=teacher.timestep_range(config.t_range),
            optimizer=optimizer,
            scheduler=scheduler,
            seed=config.seed,
            translator_config=TranslatorConfig(tasks=tasks, translator=translator.config, **remembered(checkpoint)),
        )
        shown = (config.preview, config.preview_every, config.validation.count, config.validation.source)
        previews = make_previews(record.folder / "previews", source, data, checkpoint, tasks, *shown)
        size = summary(module, config.batch_size, config.trainer.precision, config.gradient_checkpointing, checkpoint)
        train(trainer, module, data, claim, previews, size, config.save)
