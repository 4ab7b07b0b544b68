"""Edit images by optimising their latents."""

import importlib.util
from functools import partial

from dds_train.cli.instantiate import make
from dds_train.cli.schema import OptimizeConfig
from dds_train.commands import make_checkpoint
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.device import find_device
from dds_train.distillation import make_loss
from dds_train.errors import UserError
from dds_train.images.grids import save_before_after
from dds_train.methods.masking import Masking
from dds_train.methods.optimize import ConvergenceDetector
from dds_train.methods.optimize_batch import BatchOptimizer, OptimizedEdit, optimize_files
from dds_train.methods.requests import make_batches, plan_edits
from dds_train.methods.store import with_source_cache
from dds_train.methods.student import LoRAStudent
from dds_train.runs.record import Record

FREE = ("image", "batch_size", "cache", "gradient_checkpointing", "device", "output_dir")  # may differ in one folder


def run(config: OptimizeConfig) -> None:
    if "mp4" in config.trajectory and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UserError("trajectory=[mp4] needs ffmpeg: pip install imageio imageio-ffmpeg, or take trajectory=[gif]")
    with Record(config.output_dir, "optimize") as record:
        folder, checkpoint = record.folder, make_checkpoint(config.teacher, find_device(config.device))
        requests = plan_edits(config.image, config.source, config.target, config.mask, config.seed, folder, config.swap)
        keys = {request: request.digest() for request in requests}
        todo = [request for request in requests if not record.is_done(request.name, keys[request])]
        record.check_origins({request.name: request.image for request in todo})
        batches = make_batches(todo, config.batch_size, config.max_side)
        texts = [getattr(config.loss, "negative", None) or "", *(text for one in todo for text in (one.source, one.target))]
        checkpoint.embedded(texts)  # before the denoiser takes the memory
        optimize, settings = build_optimizer(config, checkpoint), config.model_dump()
        settings["teacher"] = {"dtype": checkpoint.precision, "weights": checkpoint.digest()}
        record.claim(settings, free=FREE)
        config.save(folder)
        if isinstance(targets := config.target, list) and len(targets) > 1:
            print(f"{len(targets)} edits of each image: {str(targets)[1:-1]}; quotes keep commas in one: ['a, b',c]")
        if len(todo) < len(requests):
            print(f"{len(requests) - len(todo)} of {len(requests)} edits are in {folder} already", flush=True)
        record.strike(*(request.name for request in todo))

        def save(edit: OptimizedEdit) -> None:
            files = edit.save(folder, config.trajectory if config.snapshots else (), settings)
            record.add(edit.request.name, keys[edit.request], files, record.origin(edit.request.image))

        diverged = optimize_files(optimize, batches, config.max_side, save)
        pairs = [(request.image, folder / f"{request.name}.png") for request in requests if request not in diverged]
        if len(pairs) > 1:
            save_before_after(pairs, folder / "before_after.png")
        print(f"{len(pairs)} {'edit' if len(pairs) == 1 else 'edits'} in {folder}", flush=True)
        if diverged:
            names, remedy = ", ".join(str(one.image) for one in diverged), f"lower lr={config.lr} or guidance={config.guidance}"
            raise UserError(f"{len(diverged)} of {len(requests)} edits diverged (NaN or Inf): {names}; {remedy}")


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
