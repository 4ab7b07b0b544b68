"""Everything that turns pictures into edited ones, behind one door: pixels in, pixels out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.distillation.losses import Loss
from dds_train.distillation.rng import draw
from dds_train.methods.baselines import ddim_swap_latent, sdedit_latent
from dds_train.methods.optimize import optimize_latent
from dds_train.translator import TranslatorConfig, load_translator, translate_latents

# Pixels [B,3,H,W] in [-1,1], what each picture shows, and what each is to show -> the same pictures, edited. No result depends
# on which pictures share its batch.
Method = Callable[[Tensor, Sequence[str], Sequence[str]], Tensor]


@dataclass(frozen=True)
class MethodContext:
    """What every editor starts from."""

    parts: DiffusionCheckpoint  # the teacher
    targets: Sequence[str]  # all prompts that will be asked for, so that an editor can say at once which it does not know
    seed: int = 0


def nothing(setting: MethodContext) -> Method:
    """The pictures as they are: best at keeping, worst at changing."""
    return lambda images, sources, targets: images


def round_trip(setting: MethodContext) -> Method:
    """Through the codec and back: what it costs any editor that works on latents."""
    autoencoder = setting.parts.autoencoder()
    return lambda images, sources, targets: autoencoder.decode(autoencoder.encode(images), _size(images)).cpu()


def optimize(
    setting: MethodContext,
    *,
    steps: int,
    lr: float,
    guidance: float,
    t_range: tuple[int, int],
    loss: str | Loss = "dds",
    negative: str | None = None,
) -> Method:
    """`optimize_latent` with plain SGD; `loss` is a name in `LOSSES` or such a function."""
    teacher = setting.parts.teacher()

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        table = PromptTable.of(setting.parts.text_encoder(), [*sources, *targets, *([negative] if negative else [])])
        *_, last = optimize_latent(
            teacher,
            z,
            table.condition(sources),
            table.condition(targets, negative),
            loss=loss,
            steps=steps,
            lr=lr,
            guidance=guidance,
            t_range=t_range,
            seed=setting.seed,
        )
        return last.z

    return _on_latents(setting, edit)


def sdedit(setting: MethodContext, *, strength: float = 0.6, steps: int = 50, guidance: float = 7.5) -> Method:
    """`sdedit_latent`; all pictures get the same noise, so that none depends on its company."""
    teacher = setting.parts.teacher()
    settings = {"strength": strength, "steps": steps, "guidance": guidance}

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        target = PromptTable.of(setting.parts.text_encoder(), targets).condition(targets)
        _, eps = draw(z.shape[1:], (0, 1), z.device, [(setting.seed, "sdedit")])
        return sdedit_latent(teacher, setting.parts.ddim(), z, target, eps.expand_as(z), **settings)  # type: ignore[arg-type]

    return _on_latents(setting, edit)


def ddim_inversion(setting: MethodContext, *, steps: int = 50, guidance: float = 7.5) -> Method:
    """`ddim_swap_latent`."""
    teacher, walks = setting.parts.teacher(), (setting.parts.ddim_inverse(), setting.parts.ddim())

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        table = PromptTable.of(setting.parts.text_encoder(), [*sources, *targets])
        prompts = table.condition(sources), table.condition(targets)
        return ddim_swap_latent(teacher, *walks, z, *prompts, steps=steps, guidance=guidance)

    return _on_latents(setting, edit)


def translator(setting: MethodContext, *, ckpt: str, strength: float = 1.0) -> Method:
    """A trained translator, at the task whose target caption is the one wanted.

    Raises:
        ValueError: if it has no such task.
    """
    network, card = load_translator(Path(ckpt), setting.parts)
    network.to(setting.parts.device)
    told = instructions(card, setting.targets)
    table = PromptTable.of(setting.parts.text_encoder(), told.values())

    def edit(z: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        text = table.embed(told[target] for target in targets)
        return translate_latents(network, z, text, strength)

    return _on_latents(setting, edit, setting.parts.autoencoder().factor * network.stride)


def instructions(card: TranslatorConfig, targets: Sequence[str]) -> dict[str, str]:
    """target caption -> what the translator is told.

    Raises:
        ValueError: if it has no task with one of `targets`.
    """
    known = {task.target: task.instruction for task in card.tasks.values()}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise ValueError(f"no task whose target is {unknown[0]!r}; it knows {', '.join(map(repr, known))}")
    return known


METHODS: dict[str, Callable[..., Method]] = {
    "identity": nothing,
    "vae_reconstruction": round_trip,
    "optimize": optimize,
    "sdedit": sdedit,
    "ddim_inversion": ddim_inversion,
    "translator": translator,
}


def _on_latents(
    setting: MethodContext, edit: Callable[[Tensor, Sequence[str], Sequence[str]], Tensor], multiple: int | None = None
) -> Method:
    autoencoder = setting.parts.autoencoder()

    def edit_pixels(images: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
        return autoencoder.decode(edit(autoencoder.encode(images, multiple), sources, targets), _size(images)).cpu()

    return edit_pixels


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
