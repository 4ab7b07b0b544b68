"""Edits of image files by optimisation, many at once, with their trajectories."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dds_train import __version__
from dds_train.diffusion import PromptTable
from dds_train.diffusion.autoencoder import Autoencoder
from dds_train.distillation.losses import Loss
from dds_train.distillation.noise import ScoreModel
from dds_train.errors import UserError
from dds_train.images.files import save_image
from dds_train.images.grids import image_grid, save_animation
from dds_train.images.masks import AUTO
from dds_train.methods.masking import Masking, upscaled
from dds_train.methods.masks import automatic_mask, latent_mask
from dds_train.methods.optimize import ConvergenceDetector, Optimizer, Scheduler, Step, optimize_latent
from dds_train.methods.outcome import Outcome
from dds_train.methods.requests import Batch, EditRequest
from dds_train.runs.files import atomic_write

VERSIONS = {"dds_train": __version__, **{name: version(name) for name in ("torch", "diffusers", "transformers")}}


@dataclass(frozen=True)
class OptimizedEdit:
    """The result of one request."""

    request: EditRequest
    before: Tensor  # [1,3,H,W], the input
    trajectory: list[Tensor]  # [1,3,H,W] each, the last one is the result; none if the optimisation diverged
    mask: Tensor | None  # [1,1,h,w], if it is automatic
    steps: int
    seconds: float

    @property
    def diverged(self) -> bool:
        return not self.trajectory

    def save(self, folder: Path, kinds: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        """Write NAME.png, NAME_before_after.png, the trajectory and NAME.json with all settings.

        Args:
            kinds: of files that show the trajectory: strip, gif, mp4.

        Returns:
            names of the two files without which the edit is not done.
        """
        name, result = self.request.name, self.trajectory[-1]
        if self.mask is not None:
            save_image(self.mask[0].expand(3, -1, -1) * 2 - 1, folder / f"{name}_mask.png")
        if len(self.trajectory) > 1 and "strip" in kinds:
            save_image(image_grid([torch.cat([self.before, *self.trajectory])]), folder / f"{name}_steps.png")
        for kind in sorted({"gif", "mp4"} & set(kinds)):
            save_animation([frame[0] for frame in (self.before, *self.trajectory)], folder / f"{name}_steps.{kind}")
        save_image(image_grid([torch.cat([self.before, result])]), folder / f"{name}_before_after.png")
        save_image(result[0], folder / f"{name}.png")
        own = {part: getattr(self.request, part) for part in ("source", "target", "mask", "seed")}
        about = {
            "settings": {**settings, "image": str(self.request.image), **own},
            "result": {"steps": self.steps, "seconds": self.seconds, "versions": VERSIONS},
        }
        with atomic_write(folder / f"{name}.json") as partial:
            text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # of file names that are not UTF-8
        return [f"{name}.png", f"{name}.json"]


@dataclass(frozen=True)
class BatchOptimizer:
    """`optimize_latent` for batches of requests.

    Args:
        negative: prompt, for the losses that take one.
        convergence: makes a detector for each batch; None = all steps are taken.
        snapshots: images of the trajectory, evenly spaced, the result among them; 0 = the result alone.
    """

    teacher: ScoreModel
    autoencoder: Autoencoder
    embedded: Callable[[Iterable[str]], PromptTable]  # a table with these prompts
    masking: Masking
    loss: Loss
    optimizer: Optimizer
    scheduler: Scheduler
    steps: int
    guidance: float
    t_range: tuple[int, int]
    t_order: str = "random"
    negative: str | None = None
    convergence: Callable[[], ConvergenceDetector] | None = None
    snapshots: int = 0

    def __call__(self, batch: Batch, on_step: Callable[[Step], None] = lambda step: None) -> Iterator[OptimizedEdit]:
        """The results of `batch`, one after the other; `on_step` is called after each training step of all of them."""
        began = time.perf_counter()
        z_source = self.autoencoder.encode(torch.cat([image.image for image in batch.images]))
        masks = self._latent_masks(batch, z_source)
        trajectory = []
        for step in self._optimize(batch, z_source, masks):
            if is_snapshot(step.index, self.steps, self.snapshots):
                trajectory.append(step.z)
            on_step(step)
        if not trajectory or step.z is not trajectory[-1]:
            trajectory.append(step.z)
        seconds = round((time.perf_counter() - began) / len(batch.requests), 3)
        for number, request in enumerate(batch.requests):
            latents = [z[number : number + 1] for z in trajectory] if step.z[number].isfinite().all() else []
            image = number // batch.edits_each
            mask = masks[number : number + 1] if masks is not None and request.mask == AUTO else None
            before, frames, found = self._decode(batch, image, request, z_source[image : image + 1], latents, mask)
            yield OptimizedEdit(request, before, frames, found, int(step.steps[number]), seconds)

    def _optimize(self, batch: Batch, z_source: Tensor, masks: Tensor | None) -> Iterator[Step]:
        sources, targets = [one.source for one in batch.firsts], [one.target for one in batch.requests]
        # By a table, in which a prompt's embedding does not depend on its company: what is cached is found again.
        table = self.embedded([*sources, *targets, *([self.negative] if self.negative else [])])
        return optimize_latent(
            self.teacher,
            z_source,
            table.condition(sources),
            table.condition(targets, self.negative),
            loss=self.loss,
            steps=self.steps,
            guidance=self.guidance,
            t_range=self.t_range,
            t_order=self.t_order,
            seed=[request.seed for request in batch.firsts],
            mask=masks,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            convergence=self.convergence and self.convergence(),
        )

    def _latent_masks(self, batch: Batch, z_source: Tensor) -> Tensor | None:
        """[N*M,1,h,w], one for each request; None if none has a mask."""
        if all(request.mask is None for request in batch.requests):
            return None
        masks = []
        for number, request in enumerate(batch.requests):
            z, mask = z_source[number // batch.edits_each][None], batch.masks[number // batch.edits_each]
            if request.mask == AUTO:
                table = self.embedded([request.source, request.target])
                prompts = table.condition([request.source]), table.condition([request.target])
                options = {"timestep": self.masking.timestep, "maps": self.masking.maps, "threshold": self.masking.threshold}
                masks.append(automatic_mask(self.teacher, z, *prompts, seed=request.seed, **options))  # type: ignore[arg-type]
            elif mask is None:
                masks.append(torch.ones_like(z[:, :1]))
            else:
                scaled = F.interpolate(mask, batch.images[0].size, mode="bilinear", antialias=True)
                masks.append(latent_mask(scaled, self.autoencoder.factor).to(z))
        return torch.cat(masks)

    def _decode(
        self, batch: Batch, number: int, request: EditRequest, z_source: Tensor, latents: list[Tensor], mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Input, trajectory and automatic mask in pixels; on the input's own background if the edit keeps it."""
        image, pixels = batch.images[number], batch.masks[number]
        frames = [self.autoencoder.decode(z, image.size).cpu() for z in latents]
        found = None if mask is None else upscaled(mask, self.autoencoder.factor, image, image.size)
        if not self.masking.is_exact(request.mask):
            return image.image, frames, found
        before, size = self.autoencoder.decode(z_source, image.size).cpu(), image.original.shape[-2:]
        if mask is not None:
            pixels = upscaled(mask, self.autoencoder.factor, image, (size[0], size[1]))
        return image.original, [self.masking.compose(image.original, pixels, before, after) for after in frames], found


def is_snapshot(index: int, steps: int, count: int) -> bool:
    """Whether step `index` (1 .. steps) is one of `count` evenly spaced ones, the last among them."""
    return index * count // steps > (index - 1) * count // steps


def optimize_batches(
    optimize: BatchOptimizer, batches: Iterable[Batch], save: Callable[[OptimizedEdit, str], None], outcome: Outcome, total: int
) -> None:
    """Optimise `batches` and save each edit with its key; they have `total` edits."""
    with tqdm(total=total * optimize.steps, desc="optimize", unit="step") as bar:
        for batch in batches:
            start, edits = bar.n, len(batch.requests)

            def show(step: Step, edits: int = edits, name: str = batch.requests[0].name) -> None:
                if bar.update(edits):
                    bar.set_postfix(edit=name, grad_rms=f"{step.grad_rms.item():.4f}", refresh=False)

            for edit, key in zip(optimize(batch, show), batch.keys, strict=True):
                with outcome.leaving_out(edit.request.image):
                    if edit.diverged:
                        raise UserError(f"{edit.request.image}: the edit diverged (NaN or Inf); lower lr= or guidance=")
                if not edit.diverged:
                    save(edit, key)
                    outcome.made += 1
            bar.update(start + edits * optimize.steps - bar.n)  # what early stopping has left out
