"""Edit pictures by descent on their latents."""

import importlib.util
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dds_train import build
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.diffusion.device import find_device
from dds_train.errors import UserError
from dds_train.images.files import read_image, save_image
from dds_train.images.grids import before_after_grid, image_grid, save_animation
from dds_train.images.input_image import read_input_image
from dds_train.methods.masks import automatic_mask, feathered, latent_mask, on_background, pixel_mask
from dds_train.methods.optimize import ConvergenceDetector, Step, optimize_latent
from dds_train.methods.requests import AUTO, Batch, is_done, keeps_background, load_batch, make_batches, plan_edits, settings

UNUSED = ("data", "translator", "trainer", "logger")
TRAJECTORY_KINDS = ("strip", "gif", "mp4")
VERSIONS = {name: version(name) for name in ("torch", "diffusers", "transformers")}


def run(cfg: DictConfig) -> None:
    check_choices(cfg)
    edits = plan_edits(cfg)
    checkpoint = build.build_checkpoint(cfg.teacher, find_device(cfg.device))
    output_dir, common = Path(cfg.output_dir), shared_settings(cfg, checkpoint)
    todo = [edit for edit in edits if not is_done(output_dir, edit, settings(edit, common))]
    batches = make_batches(todo, cfg.batch_size, cfg.max_side)
    if len(todo) < len(edits):
        print(f"{len(edits) - len(todo)} of {len(edits)} edits are in {output_dir} already", flush=True)
    if batches:
        method = BatchEditor(cfg, checkpoint)
        build.save_config(cfg, output_dir, unused=UNUSED)
        with tqdm(total=len(batches) * cfg.steps, desc="optimize", unit="step") as bar:
            for planned in batches:
                method.edit(load_batch(planned, cfg.max_side), output_dir, common, bar)
    if len(edits) > 1:
        pairs = [
            (read_input_image(e.image, cfg.max_side).image[0], read_image(output_dir / f"{e.name}.png")) for e in edits[:64]
        ]
        save_image(before_after_grid(pairs), output_dir / "before_after.png")
    print(f"{len(edits)} {'edit' if len(edits) == 1 else 'edits'} in {output_dir}", flush=True)


def check_choices(cfg: DictConfig) -> None:
    unknown = [one for one in cfg.trajectory if one not in TRAJECTORY_KINDS]
    if unknown:
        raise UserError(f"trajectory=[{','.join(cfg.trajectory)}]: there are {', '.join(TRAJECTORY_KINDS)}")
    if "mp4" in cfg.trajectory and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UserError("trajectory=[mp4] needs ffmpeg: pip install imageio imageio-ffmpeg, or take trajectory=[gif]")
    if cfg.exact_background not in ("auto", True, False):
        raise UserError(f"exact_background={cfg.exact_background}: take auto, true or false")


def shared_settings(cfg: DictConfig, checkpoint: DiffusionCheckpoint) -> dict[str, Any]:
    """What determines the files of all edits of a run."""
    keys = ["loss", "optimizer", "scheduler", "steps", "guidance", "t_range", "early_stop", "auto_mask", "feather", "max_side"]
    keys += ["exact_background", "snapshots", "trajectory"]
    used = {k: OmegaConf.to_container(cfg[k], resolve=True) if OmegaConf.is_config(cfg[k]) else cfg[k] for k in keys}
    weights = checkpoint.fingerprint("unet", "vae", "text_encoder", "scheduler")
    return {**used, "teacher": {"path": checkpoint.path, "weights": weights, "dtype": str(checkpoint.dtype)}}


class BatchEditor:
    """What all batches share. `cfg` is that of optimize."""

    def __init__(self, cfg: DictConfig, checkpoint: DiffusionCheckpoint) -> None:
        self.cfg, self.autoencoder, self.text = cfg, checkpoint.autoencoder(), checkpoint.text_encoder()
        teacher = checkpoint.teacher()
        self.t_range = build.build_t_range(cfg.t_range, len(teacher.schedule), cfg.loss)
        build.build_t_range([cfg.auto_mask.timestep, cfg.auto_mask.timestep + 1], len(teacher.schedule))
        self.loss = build.build_loss(cfg.loss, checkpoint)
        self.optimizer, self.scheduler = build.build_partial(cfg.optimizer), build.build_partial(cfg.scheduler)
        if cfg.gradient_checkpointing:
            teacher.enable_gradient_checkpointing()
        self.teacher = build.with_source_cache(cfg.cache, teacher, checkpoint)

    def edit(self, batch: Batch, output_dir: Path, common: dict[str, Any], bar: Any) -> None:
        """Make the edits of `batch` and write them. The record of an edit comes last: what has one is complete."""
        began = time.perf_counter()
        z_source = self.autoencoder.encode(torch.cat([picture.image for picture in batch.pictures]))
        masks = self.latent_masks(batch, z_source)
        trajectory = [z_source.repeat_interleave(batch.edits_each, dim=0)]
        for step in self.descend(batch, z_source, masks):
            if is_snapshot(step.index, self.cfg.steps, self.cfg.snapshots):
                trajectory.append(step.z)
            if bar.update():
                bar.set_postfix(edit=batch.edits[0].name, grad_rms=f"{step.grad_rms.item():.4f}", refresh=False)
        bar.update(self.cfg.steps - step.index)
        if step.z is not trajectory[-1]:
            trajectory.append(step.z)
        seconds = round((time.perf_counter() - began) / len(batch.edits), 3)
        for number, edit in enumerate(batch.edits):
            if not torch.isfinite(step.z[number]).all():
                remedy = f"lower lr={self.cfg.lr} or guidance={self.cfg.guidance}"
                raise UserError(f"{edit.image}: the latent left the finite numbers; {remedy}")
            mask = None if masks is None else masks[number : number + 1]
            self.write(batch, number, [z[number : number + 1] for z in trajectory], mask, output_dir / edit.name)
            result = {"steps": int(step.steps[number]), "seconds": seconds, "versions": VERSIONS}
            record = {"settings": settings(edit, common), "result": result}
            (output_dir / f"{edit.name}.json").write_text(json.dumps(record, indent=2))

    def descend(self, batch: Batch, z_source: Tensor, masks: Tensor | None) -> Iterator[Step]:
        stop, negative = self.cfg.early_stop, self.cfg.loss.get("negative")
        sources, targets = [edit.source for edit in batch.firsts], [edit.target for edit in batch.edits]
        # By a table, in which a prompt's embedding does not depend on its company: what is cached is found again.
        table = PromptTable.of(self.text, [*sources, *targets, *([negative] if negative else [])])
        return optimize_latent(
            self.teacher,
            z_source,
            table.condition(sources),
            table.condition(targets, negative),
            loss=self.loss,
            steps=self.cfg.steps,
            guidance=self.cfg.guidance,
            t_range=self.t_range,
            seed=[edit.seed for edit in batch.firsts],
            mask=masks,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            convergence=ConvergenceDetector(stop.window, stop.tolerance) if stop.tolerance > 0 else None,
        )

    def latent_masks(self, batch: Batch, z_source: Tensor) -> Tensor | None:
        """[N*M,1,h,w], one for each edit; None if none has a mask."""
        if all(edit.mask is None for edit in batch.edits):
            return None
        masks = []
        for number, edit in enumerate(batch.edits):
            z, mask = z_source[number // batch.edits_each][None], batch.mask_of(number)
            if edit.mask == AUTO:
                prompts = self.text.condition(edit.source), self.text.condition(edit.target)
                masks.append(automatic_mask(self.teacher, z, *prompts, seed=edit.seed, **self.cfg.auto_mask))
            elif mask is None:
                masks.append(torch.ones_like(z[:, :1]))
            else:
                scaled = F.interpolate(mask, batch.pictures[0].size, mode="bilinear", antialias=True)
                masks.append(latent_mask(scaled, self.autoencoder.factor).to(z))
        return torch.cat(masks)

    def write(self, batch: Batch, number: int, trajectory: list[Tensor], mask: Tensor | None, path: Path) -> None:
        """The files of edit `number`, whose latents went `way` (the first is the input's): NAME.png and so on."""
        edit, picture, pixels = batch.edits[number], batch.picture_of(number), batch.mask_of(number)
        source, *frames = trajectory
        frames = [self.autoencoder.decode(z, picture.size).cpu() for z in frames]
        if edit.mask == AUTO and mask is not None:
            found = pixel_mask(mask.cpu(), self.autoencoder.factor, picture.size)
            save_image(found[0].expand(3, -1, -1) * 2 - 1, path.with_name(f"{path.name}_mask.png"))
            pixels = F.interpolate(found, picture.original.shape[-2:], mode="nearest")
        shown = picture.image
        if keeps_background(self.cfg.exact_background, edit.mask):
            shown, before = picture.original, self.autoencoder.decode(source, picture.size).cpu()
            where = torch.ones_like(shown[:, :1]) if pixels is None else feathered(pixels, self.cfg.feather)
            frames = [on_background(shown, where, before, after) for after in frames]
        save_image(frames[-1][0], path.with_name(f"{path.name}.png"))
        save_image(image_grid([torch.cat([shown, frames[-1]])]), path.with_name(f"{path.name}_before_after.png"))
        if self.cfg.snapshots and "strip" in self.cfg.trajectory:
            save_image(image_grid([torch.cat([shown, *frames])]), path.with_name(f"{path.name}_steps.png"))
        for kind in {"gif", "mp4"} & set(self.cfg.trajectory):
            save_animation([frame[0] for frame in (shown, *frames)], path.with_name(f"{path.name}_steps.{kind}"))


def is_snapshot(index: int, steps: int, count: int) -> bool:
    """Whether step `index` (1 .. steps) is one of `count` evenly spaced ones, the last among them."""
    return index * count // steps > (index - 1) * count // steps
