"""Memory that `fit` takes at the shapes of the supported teachers, by arithmetic: no weights, no GPU.

    python scripts/expected_memory.py            # translators on Stable Diffusion 1.5, 512 x 512 pixels
    python scripts/expected_memory.py families   # one image with LoRA and checkpointing on each family; minutes

Shapes of all tensors of a step are computed on the meta device, with attention that does not materialise its matrix, the
teacher in half precision and the translator's activations in bfloat16. What CUDA, its allocator and mixed precision's float32
parts take comes on top: measured on a GPU it will be more. VAE and text encoders are not counted: `fit` on latents has neither.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from dds_train.diffusion.families import find_family
from dds_train.diffusion.quantization import weight_bytes
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


@dataclass(frozen=True)
class Model:
    """A public model: its pipeline's class, its denoiser's configuration, pixels per latent, shapes of an encoded prompt."""

    pipeline: str
    config: dict[str, Any]
    factor: int
    prompt: dict[str, tuple[int, ...]]
    rows: int = 4  # of the teacher's batched call: two prompts, each beside the null prompt


# Configurations are the class defaults of diffusers 0.42 but for what is given, which is from its conversion scripts, or, for
# Stable Diffusion XL, from the public config.json. Prompts of Z-Image and Qwen-Image have their own length, here 128 tokens.
MODELS = {
    "Stable Diffusion 1.5": Model("StableDiffusionPipeline", SD15, 8, {"text": (77, 768)}),
    "Stable Diffusion XL": Model(
        "StableDiffusionXLPipeline",
        {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        8,
        {"text": (77, 2048), "pooled": (1280,)},
    ),
    "Stable Diffusion 3.5 medium": Model(
        "StableDiffusion3Pipeline",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        8,
        {"text": (333, 4096), "pooled": (2048,)},
    ),
    "FLUX.1 dev": Model(
        "FluxPipeline", {"guidance_embeds": True}, 8, {"text": (512, 4096), "pooled": (768,), "guidance": ()}, rows=2
    ),
    "FLUX.2 klein base 4B": Model(
        "Flux2KleinPipeline",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        16,
        {"text": (512, 7680)},
    ),
    "Sana 1.6B": Model("SanaPipeline", {}, 32, {"text": (300, 2304), "mask": (300,)}),
    "PixArt-Sigma": Model(
        "PixArtSigmaPipeline",
        {"caption_channels": 4096, "use_additional_conditions": False},
        8,
        {"text": (300, 4096), "mask": (300,)},
    ),
    "Z-Image": Model("ZImagePipeline", {}, 8, {"text": (128, 2560), "mask": (128,)}),
    "Qwen-Image": Model("QwenImagePipeline", {}, 8, {"text": (128, 3584), "mask": (128,)}),
}


def translators() -> None:
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


def families() -> None:
    """In GiB: weights are those of the teacher; the total has adapters and optimiser besides."""
    print("| teacher | parameters | trained | weights: bf16, fp8, nf4 | pixels | step: bf16, fp8 | total: bf16, fp8, nf4 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, model in MODELS.items():
        family = find_family(model.pipeline)
        with torch.device("meta"):
            network = family.network.from_config(model.config)
        count = sum(p.numel() for p in network.parameters())
        weights = [weight_bytes(network, torch.bfloat16, kind, [family.last_layer]) for kind in (None, "fp8", "nf4")]
        with torch.device("meta"):
            adapters = sum(p.numel() for p in make_translator(KINDS["lora"], lambda net=network: net, family).parameters())  # type: ignore[misc]
        for pixels in (512, 1024):
            steps = [
                step_bytes(
                    KINDS["lora"],
                    model.config,
                    family,
                    size=(pixels // model.factor,) * 2,
                    prompt=Prompt({part: torch.empty(1, *shape, device="meta") for part, shape in model.prompt.items()}),
                    images=1,
                    edits=1,
                    evaluations=model.rows,
                    translator_dtype=torch.bfloat16,
                    teacher_dtype=torch.bfloat16,
                    checkpointing=True,
                    quantization=kind,
                )
                for kind in (None, "fp8")
            ]
            # Of an adapter's weight: itself, gradient, two moments and average, in float32.
            totals = [one + step + 20 * adapters for one, step in zip(weights, (*steps, steps[0]), strict=True)]
            shown = [", ".join(f"{one / GIB:.1f}" for one in some) for some in (weights, steps, totals)]
            first = f"{name} | {count / 1e9:.2f} B | {adapters / 1e6:.1f} M | {shown[0]}" if pixels == 512 else " | | | "
            print(f"| {first} | {pixels} | {shown[1]} | {shown[2]} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=("translators", "families"), default="translators")
    {"translators": translators, "families": families}[parser.parse_args().table]()
