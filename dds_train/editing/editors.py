"""Everything that turns pictures into edited ones, behind one door: pixels in, pixels out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dds_train.distillation.losses import Loss
from dds_train.distillation.rng import draw
from dds_train.editing.baselines import ddim_swap_latent, sdedit_latent
from dds_train.editing.optimize import optimize_latent
from dds_train.frozen import Pretrained
from dds_train.translator import load_translator

Editor = Callable[[Tensor], Tensor]  # [B,3,H,W] in [-1,1], to the same


@dataclass(frozen=True)
class Wish:
    """What every editor is asked for, and the teacher that it asks."""

    parts: Pretrained
    source: str
    target: str
    seed: int = 0


def nothing(wish: Wish) -> Editor:
    """The pictures as they are: best at keeping, worst at changing."""
    return lambda images: images


def round_trip(wish: Wish) -> Editor:
    """Through the codec and back: what it costs any editor that works on latents."""
    codec = wish.parts.codec()
    return lambda images: codec.decode(codec.encode(images), _size(images)).cpu()


def optimize(
    wish: Wish,
    *,
    steps: int,
    lr: float,
    guidance: float,
    t_range: tuple[int, int],
    loss: str | Loss = "dds",
    negative: str | None = None,
) -> Editor:
    """`optimize_latent` with plain SGD; `loss` is a name in `LOSSES` or such a function."""
    teacher, text = wish.parts.teacher(), wish.parts.text_encoder()
    source, target = text.condition(wish.source), text.condition(wish.target, negative)

    def edit(z: Tensor) -> Tensor:
        *_, last = optimize_latent(
            teacher,
            z,
            source,
            target,
            loss=loss,
            steps=steps,
            lr=lr,
            guidance=guidance,
            t_range=t_range,
            seed=wish.seed,
        )
        return last.z

    return _on_latents(wish, edit)


def sdedit(wish: Wish, *, strength: float = 0.6, steps: int = 50, guidance: float = 7.5) -> Editor:
    """`sdedit_latent`; all pictures get the same noise, so that none depends on its company."""
    teacher, target = wish.parts.teacher(), wish.parts.text_encoder().condition(wish.target)
    settings = {"strength": strength, "steps": steps, "guidance": guidance}

    def edit(z: Tensor) -> Tensor:
        _, eps = draw(z.shape[1:], (0, 1), z.device, [(wish.seed, "sdedit")])
        return sdedit_latent(teacher, wish.parts.ddim(), z, target, eps.expand_as(z), **settings)  # type: ignore[arg-type]

    return _on_latents(wish, edit)


def ddim_inversion(wish: Wish, *, steps: int = 50, guidance: float = 7.5) -> Editor:
    """`ddim_swap_latent`."""
    teacher, text = wish.parts.teacher(), wish.parts.text_encoder()
    source, target = text.condition(wish.source), text.condition(wish.target)
    walks = wish.parts.ddim_inverse(), wish.parts.ddim()
    return _on_latents(wish, lambda z: ddim_swap_latent(teacher, *walks, z, source, target, steps=steps, guidance=guidance))


def translator(wish: Wish, *, ckpt: str, strength: float = 1.0) -> Editor:
    """A trained translator, at the task whose target caption is the wish's.

    Raises:
        ValueError: if it has no such task.
    """
    network, card = load_translator(Path(ckpt), wish.parts)
    tasks = [task for task in card.tasks.values() if task.target == wish.target]
    if not tasks:
        raise ValueError(f"{ckpt} has no task whose target is {wish.target!r}")
    network.to(wish.parts.device)
    text = wish.parts.text_encoder().embed(tasks[0].instruction)

    @torch.no_grad()
    def edit(z: Tensor) -> Tensor:
        return network(z, text.expand(len(z), -1, -1), torch.full((len(z),), strength, device=z.device))

    return _on_latents(wish, edit)


EDITORS: dict[str, Callable[..., Editor]] = {
    "nothing": nothing,
    "round_trip": round_trip,
    "optimize": optimize,
    "sdedit": sdedit,
    "ddim_inversion": ddim_inversion,
    "translator": translator,
}


def _on_latents(wish: Wish, edit: Callable[[Tensor], Tensor]) -> Editor:
    codec = wish.parts.codec()
    return lambda images: codec.decode(edit(codec.encode(images)), _size(images)).cpu()


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
