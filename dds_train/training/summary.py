"""Size and expected memory of a training run."""

import torch

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.quantization import weight_bytes
from dds_train.training.memory import step_bytes
from dds_train.training.module import DistillationModule


def summary(
    module: DistillationModule, batch_size: int, precision: str, checkpointing: bool, checkpoint: DiffusionCheckpoint
) -> str:
    """Parameters trained and frozen, and the memory of one device, by arithmetic: not measured. Text encoders are not there any
    more."""
    trained, teacher = list(module.translator.parameters()), module.teacher
    with torch.device("meta"):  # as it was before adapters and quantization
        denoiser = teacher.family.network.from_config(teacher.network.config)
    kept = [teacher.family.last_layer]
    others = [*trained, *(module.autoencoder.network.parameters() if module.autoencoder else ())]
    weights = sum(p.numel() * p.element_size() for p in others)
    weights += weight_bytes(denoiser, teacher.dtype, checkpoint.quantization, kept, checkpoint.offload == "blocks")
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
        quantization=checkpoint.quantization,
    )
    count = [sum(p.numel() for p in some) for some in (trained, [*denoiser.parameters(), *others[len(trained) :]])]
    return (
        f"{', '.join(module.tasks.names)}: {count[0] / 1e6:.1f} M parameters trained, {count[1] / 1e6:.1f} M frozen\n"
        f"expected memory {gib(weights + training + step)}: weights {gib(weights)}, gradients, optimiser and average "
        f"{gib(training)}, {batch_size} images at a time {gib(step)}"
    )


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 0.95 * 2**30 else f"{size / 2**20:.0f} MiB"
