"""Size and expected memory of a training run."""

import torch

from dds_train.training.memory import step_bytes
from dds_train.training.module import DistillationModule


def summary(module: DistillationModule, batch_size: int, precision: str, checkpointing: bool) -> str:
    """Parameters trained and frozen, and the memory of one device, by arithmetic: not measured."""
    trained = list(module.translator.parameters())
    networks = [part.network for part in (module.teacher, module.autoencoder) if part]
    frozen = [p for network in networks for p in network.parameters() if not p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in (*trained, *frozen))
    # Gradient, the optimiser's two moments (Adam), the average.
    training = sum(4 * p.numel() * p.element_size() for p in trained)
    step = step_bytes(
        module.translator_config.translator,
        module.teacher.network.config,
        module.teacher.family,
        size=module.teacher.latent_shape[1:],
        prompt=module.tasks.instruction,
        images=batch_size,
        edits=module.tasks_per_image,
        evaluations=2 * batch_size * ((1 if module.tasks.one_source else module.tasks_per_image) + module.tasks_per_image),
        translator_dtype=torch.float32 if "32" in str(precision) else torch.bfloat16,
        teacher_dtype=module.teacher.dtype,
        checkpointing=checkpointing,
    )
    count = sum(p.numel() for p in trained), sum(p.numel() for p in frozen)
    return (
        f"{', '.join(module.tasks.names)}: {count[0] / 1e6:.1f} M parameters trained, {count[1] / 1e6:.1f} M frozen\n"
        f"expected memory {gib(weights + training + step)}: weights {gib(weights)}, gradients, optimiser and average "
        f"{gib(training)}, {batch_size} images at a time {gib(step)}"
    )


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 0.95 * 2**30 else f"{size / 2**20:.0f} MiB"
