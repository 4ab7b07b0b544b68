"""Edit images by optimising their latents."""

import importlib.util
from functools import partial

from dds_train.cli.instantiate import make
from dds_train.cli.schema import OptimizeConfig
from dds_train.commands import make_checkpoint
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.device import find_rank_device
from dds_train.distillation import make_loss
from dds_train.errors import UserError
from dds_train.images.streaming import begun, read_ahead
from dds_train.methods.masking import Masking
from dds_train.methods.optimize import ConvergenceDetector
from dds_train.methods.optimize_batch import BatchOptimizer, OptimizedEdit, optimize_batches
from dds_train.methods.outcome import Outcome, stops
from dds_train.methods.requests import group_edits, make_batches, missing_edits, plan_edits
from dds_train.methods.store import with_source_cache
from dds_train.methods.student import LoRAStudent
from dds_train.runs.record import Record
from dds_train.runs.stamp import own_ranks

# May differ in one folder.
FREE = ("image", "batch_size", "cache", "gradient_checkpointing", "device", "output_dir", "on_error")


def run(config: OptimizeConfig) -> None:
    if "mp4" in config.trajectory and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UserError("trajectory=[mp4] needs ffmpeg: pip install imageio imageio-ffmpeg, or take trajectory=[gif]")
    with Record(config.output_dir, "optimize", own_ranks()) as record:
        folder, checkpoint = record.folder, make_checkpoint(config.teacher, find_rank_device(config.device))
        requests = plan_edits(config.image, config.source, config.target, config.mask, config.seed, folder, config.swap)
        outcome = Outcome(stops(config.on_error, config.image))
        groups = missing_edits(record.ranks.share(group_edits(requests)), record, outcome)
        todo = [request for group in groups for request in group]
        batches = begun(make_batches(groups, config.batch_size, config.max_side, outcome))
        texts = [getattr(config.loss, "negative", None) or "", *(text for one in todo for text in (one.source, one.target))]
        checkpoint.embedded(texts)  # before the denoiser takes the memory
        optimize, settings = build_optimizer(config, checkpoint), config.model_dump()
        settings["teacher"] = {"dtype": checkpoint.precision, "weights": checkpoint.digest()}
        record.claim(settings, free=FREE)
        config.save(folder)
        if isinstance(targets := config.target, list) and len(targets) > 1 and record.ranks.rank == 0:
            print(f"{len(targets)} edits of each image: {str(targets)[1:-1]}; quotes keep commas in one: ['a, b',c]")
        record.strike(*(request.name for request in todo))

        def save(edit: OptimizedEdit, key: str) -> None:
            files = edit.save(folder, config.trajectory if config.snapshots else (), settings)
            record.add(edit.request.name, key, files, record.origin(edit.request.image))

        optimize_batches(optimize, read_ahead(batches), save, outcome, len(todo))
        if (outcomes := record.gather(outcome.values())) is not None:
            pairs = [(request.image, folder / f"{request.name}.png") for request in requests if request.name in record.results]
            Outcome.of_all(outcomes).report(folder, pairs, len(requests), "edit")


def build_optimizer(config: OptimizeConfig, checkpoint: DiffusionCheckpoint) -> BatchOptimizer:
    teacher = checkpoint.teacher()
    teacher.timestep_range([config.auto_mask.timestep, config.auto_mask.timestep + 1], "auto_mask.timestep")
    if config.gradient_checkpointing:
        teacher.enable_gradient_checkpointing()
    stop, loss = config.early_stop, config.loss.model_dump(exclude={"negative"})
    checkpoint.check_guidance(loss["name"], config.guidance)
    return BatchOptimizer(
        teacher=with_source_cache(config.cache, checkpoint),
        autoencoder=checkpoint.autoencoder(),
        embedded=checkpoint.embedded,
        masking=Masking(config.exact_background, config.feather, **config.auto_mask.model_dump()),
        loss=make_loss(**loss, student=partial(LoRAStudent, checkpoint)),
        optimizer=make(config.optimizer),
        scheduler=make(config.scheduler),
        t_range=teacher.timestep_range(config.t_range),
        negative=getattr(config.loss, "negative", None),
        convergence=partial(ConvergenceDetector, stop.window, stop.tolerance) if stop.tolerance > 0 else None,
        **config.model_dump(include={"steps", "guidance", "t_order", "snapshots"}),
    )
