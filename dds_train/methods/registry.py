"""Editing methods by name; see the package for an example."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.distillation.losses import loss_options, lowest_timestep, make_loss
from dds_train.distillation.rng import draw
from dds_train.methods.baselines import ddim_swap_latent, sdedit_latent
from dds_train.methods.optimize import optimize_latent
from dds_train.methods.student import LoRAStudent
from dds_train.translator import TranslatorConfig, load_translator, read_config, translate_latents

# Default negative prompts of losses that need one.
NEGATIVE = {
    "nfsd": "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy",
}


class Method(Protocol):
    """Edits a batch. No result depends on which images share its batch."""

    def __call__(self, images: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        """Images [B,3,H,W] in [-1,1], and a source and a target prompt of each, to edited images of that shape, on the CPU."""
        ...


@dataclass(frozen=True)
class MethodContext:
    """What methods share: the teacher, the seed of all noise, and the prompts that will be asked for, as far as they are known:
    these are encoded together."""

    checkpoint: DiffusionCheckpoint
    seed: int = 0
    prompts: Sequence[str] = ()

    def embedded(self, prompts: Iterable[str] = ()) -> PromptTable:
        return self.checkpoint.embedded([*self.prompts, *prompts])


def identity(context: MethodContext) -> Method:
    """The input itself: preserves everything, edits nothing."""
    return lambda images, sources, targets: images


def vae_reconstruction(context: MethodContext) -> Method:
    """A VAE round trip, whose error every latent-space method has."""
    return _in_latent_space(context, lambda z, sources, targets: z)


def optimize(
    context: MethodContext,
    *,
    lr: float,
    guidance: float,
    t_range: Sequence[int],
    t_order: str = "random",
    steps: int = 200,
    loss: str = "dds",
    options: Mapping[str, Any] | None = None,
    negative: str | None = None,
) -> Method:
    """Score distillation on the latent (`optimize_latent`) with plain SGD.

    Args:
        t_range: first and last timestep of the noise; t_order: "random" or "descending".
        loss: name of a score-distillation loss; options: its own.
        negative: prompt, for losses with a negative branch.

    Raises:
        ValueError: for a loss, an option or a range of timesteps that does not exist.
    """
    context.checkpoint.check_guidance(loss, guidance)
    first, last = t_range
    negative = negative or NEGATIVE.get(loss)
    context.embedded([negative] if negative else [])  # before the denoiser takes the memory
    teacher = context.checkpoint.teacher()
    lowest = lowest_timestep(loss, **(options or {}))
    if not lowest <= first < last <= len(teacher.schedule):
        raise ValueError(
            f"t_range={[first, last]}: give [FIRST,LAST] within [{lowest},{len(teacher.schedule)}], such as [50,950]"
        )
    redraws = {"redraw_range": (first, last)} if "redraw_range" in loss_options(loss) else {}
    loss_fn = make_loss(loss, partial(LoRAStudent, context.checkpoint), **{**redraws, **(options or {})})

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        table = context.embedded([*sources, *targets, *([negative] if negative else [])])
        source, target = table.condition(sources), table.condition(targets, negative)
        *_, step = optimize_latent(
            teacher,
            z,
            source,
            target,
            loss=loss_fn,
            steps=steps,
            lr=lr,
            guidance=guidance,
            t_range=(first, last),
            t_order=t_order,
            seed=context.seed,
        )
        return step.z

    return _in_latent_space(context, edit)


def sdedit(context: MethodContext, *, strength: float = 0.6, steps: int = 50, guidance: float = 7.5) -> Method:
    """SDEdit (`sdedit_latent`), with the same noise for all images."""
    checkpoint = context.checkpoint
    checkpoint.check_guidance("dds", guidance)

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        target = context.embedded(targets).condition(targets)
        _, eps = draw(z.shape[1:], (0, 1), z.device, [(context.seed, "sdedit")])
        parts = (checkpoint.teacher(), checkpoint.ddim())
        return sdedit_latent(*parts, z, target, eps.expand_as(z), strength=strength, steps=steps, guidance=guidance)

    return _in_latent_space(context, edit)


def ddim_inversion(context: MethodContext, *, steps: int = 50, guidance: float = 7.5) -> Method:
    """DDIM inversion under the source prompt, then DDIM under the target prompt (`ddim_swap_latent`)."""
    checkpoint = context.checkpoint
    checkpoint.check_guidance("dds", guidance)

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        table = context.embedded([*sources, *targets])
        parts = (checkpoint.teacher(), checkpoint.ddim_inverse(), checkpoint.ddim())
        return ddim_swap_latent(*parts, z, table.condition(sources), table.condition(targets), steps=steps, guidance=guidance)

    return _in_latent_space(context, edit)


def translator(context: MethodContext, *, ckpt: str, strength: float = 1.0, task: str | None = None) -> Method:
    """A trained translator.

    Args:
        ckpt: a checkpoint or an exported folder.
        task: name of its task; None for the one that makes an image's edit (`instructions`).
    """
    context.checkpoint.embedded(task.instruction for task in read_config(Path(ckpt)).tasks.values())
    network, config = load_translator(Path(ckpt), context.checkpoint)
    network.to(context.checkpoint.device)

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        edits = list(zip(sources, targets, strict=True))
        chosen = instructions(config, edits, task)
        table = context.checkpoint.embedded(chosen.values())
        return translate_latents(network, z, table.embed(chosen[one] for one in edits), strength)

    return _in_latent_space(context, edit, context.checkpoint.autoencoder().factor * network.stride)


def instructions(
    config: TranslatorConfig, edits: Sequence[tuple[str, str]], task: str | None = None
) -> dict[tuple[str, str], str]:
    """A translator's instructions for edits, by source and target prompt.

    Args:
        task: name of the task for all; None for the first that makes this target of this source: a task on captions takes the
            source as the caption.

    Raises:
        UserError: if it has no such task.
        ValueError: if no task makes one of `edits`.
    """
    if task is not None:
        return dict.fromkeys(edits, config.choose(task).instruction)
    tasks, chosen = config.tasks, {}
    for source, target in edits:
        fitting = (one.instruction for one in tasks.values() if one.filled(source)[1] == target)
        if (instruction := next(fitting, None)) is None:
            targets = ", ".join(f"{name} ({one.target!r})" for name, one in tasks.items())
            raise ValueError(f"no task makes {target!r} of {source!r}; take task=NAME, one of its {targets}")
        chosen[source, target] = instruction
    return chosen


METHODS: dict[str, Callable[..., Method]] = {
    "identity": identity,
    "vae_reconstruction": vae_reconstruction,
    "optimize": optimize,
    "sdedit": sdedit,
    "ddim_inversion": ddim_inversion,
    "translator": translator,
}


def _in_latent_space(
    context: MethodContext, edit: Callable[[Tensor, Sequence[str], Sequence[str]], Tensor], multiple: int | None = None
) -> Method:
    """`edit` on scaled latents [B,C,h,w], between VAE encoder and decoder."""
    autoencoder = context.checkpoint.autoencoder()

    def on_images(images: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        height, width = images.shape[-2:]
        return autoencoder.decode(edit(autoencoder.encode(images, multiple), sources, targets), (height, width)).cpu()

    return on_images
