"""Memory that `fit` takes at the shape of Stable Diffusion 1.5 (512 x 512 pixels), by arithmetic: no weights, no GPU.

    python scripts/expected_memory.py

Shapes of all tensors of a step are computed on the meta device, with attention that does not materialise its matrix, the
teacher in float16 and the translator's activations in bfloat16. What CUDA, its allocator and mixed precision's float32 parts
take comes on top: measured on a GPU it will be more.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from dds_train.diffusion.families import find_family
from dds_train.distillation import Prompt
from dds_train.training.memory import step_bytes
from dds_train.translator import make_translator

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)}
BASE = {"channels": [128, 256, 512], "attention": [False, True, True], "depth": 2, "heads": 8, "groups": 32}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "base": {"kind": "unet", **BASE},
    "teacher_init": {"kind": "teacher_init"},
}
FAMILY = find_family("StableDiffusionPipeline")
GIB = 2**30


def main() -> None:
    with torch.device("meta"):
        frozen = sum(p.numel() for p in UNet2DConditionModel.from_config(SD15).parameters())
    print("| translator | images x edits | checkpointing | trained | weights and optimiser | step | total |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, images, edits, checkpointing in (
        ("lora", 1, 1, True),
        ("lora", 4, 1, True),
        ("lora", 4, 4, True),
        ("lora", 4, 1, False),
        ("base", 4, 1, False),
        ("base", 4, 4, True),
        ("teacher_init", 4, 1, True),
    ):
        with torch.device("meta"):
            translator = make_translator(KINDS[name], lambda: UNet2DConditionModel.from_config(SD15), FAMILY)
        trained = sum(p.numel() for p in translator.parameters())
        weights = 2 * frozen + 20 * trained  # float16; and float32 weight, gradient, two moments, average
        step = step_bytes(
            translator.config,
            SD15,
            FAMILY,
            size=(64, 64),
            prompt=Prompt({"text": torch.empty(1, 77, 768)}),
            images=images,
            edits=edits,
            evaluations=2 * images * (1 + edits),
            translator_dtype=torch.bfloat16,
            teacher_dtype=torch.float16,
            checkpointing=checkpointing,
        )
        numbers = f"{trained / 1e6:.1f} M | {weights / GIB:.1f} GiB | {step / GIB:.1f} GiB | {(weights + step) / GIB:.1f} GiB"
        print(f"| {name} | {images} x {edits} | {'yes' if checkpointing else 'no'} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
