"""Train a small latent diffusion model from captioned images and save it in diffusers' folder layout.

    python scripts/train_critters_teacher.py --work runs/teacher --output my_teacher            # the critters world
    python scripts/train_critters_teacher.py --data DIR --work runs/mine --output my_teacher    # DIR: name.png + name.txt
    python scripts/train_critters_teacher.py --start dds_train/critters/teacher --work runs/more --output better   # continue

Stages: tokenizer, AutoencoderKL, then UNet and text encoder together (v-prediction, min-SNR weights, arXiv 2303.09556,
10 % empty prompts). Each stage writes a checkpoint every few minutes and resumes from it when the same command runs again; the
folder in `--output` holds EMA weights in fp16, rewritten at every checkpoint of the UNet; `samples.png` in `--work` shows them.
The learning rate is constant and falls linearly to zero over the last quarter of `--unet-steps` (or of `--unet-minutes`, if
that ends sooner), so a run can be extended or ended early.
"""

import argparse
import copy
import csv
import os
import random
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.utils import save_image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dds_train.critters.captions import sample_caption
from dds_train.critters.render import render
from dds_train.critters.world import BACKDROPS, FURS, SPECIES, critter
from dds_train.training.callbacks import warmed_ema

HELD_OUT = 256
CAPTIONS_PER_CRITTER = 8


@dataclass(frozen=True)
class CaptionedImages:
    """The training set."""

    images: Tensor  # uint8 [N, 3, S, S]
    captions: list[list[str]]  # one or more for each image
    prompts: list[str]  # for the sample grid


def main() -> None:
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    data = critters(args.count, args.size, args.work) if args.data == "critters" else folder(Path(args.data), args.size)
    if args.start:
        tokenizer = CLIPTokenizer.from_pretrained(args.start / "tokenizer")
        vae = AutoencoderKL.from_pretrained(args.start / "vae").to(args.device).requires_grad_(False)
        latents = encode(vae, data.images, args)
    else:
        tokenizer = train_tokenizer(data, args.max_tokens, args.work / "tokenizer")
        vae = train_vae(data, args)
        latents = encode(vae, data.images, args)
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    train_unet(data, latents * vae.config.scaling_factor, vae, tokenizer, args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="critters", help="'critters' or a folder of name.png + name.txt")
    parser.add_argument("--count", type=int, default=60_000, help="number of critters")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished teacher")
    parser.add_argument("--start", type=Path, help="a finished teacher: keep its VAE, continue with its UNet and text encoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=5_000)
    parser.add_argument("--vae-batch", type=int, default=32)
    parser.add_argument("--vae-lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the KL term, both terms being means")
    parser.add_argument("--latent-channels", type=int, default=12)
    parser.add_argument("--unet-steps", type=int, default=18_000)
    parser.add_argument("--unet-minutes", type=float, default=float("inf"), help="end there if not done by then")
    parser.add_argument("--unet-batch", type=int, default=64)
    parser.add_argument("--unet-lr", type=float, default=1e-3)
    parser.add_argument("--unet-channels", type=int, nargs=2, default=(64, 128))
    parser.add_argument("--text-width", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--save-minutes", type=float, default=5)
    return parser.parse_args()


# ---------------------------------------------------------------- images


def critters(count: int, size: int, work: Path) -> CaptionedImages:
    cache = work / f"critters-{size}-{count}.npy"
    if not cache.exists():
        with Pool() as pool:
            np.save(cache, np.stack(pool.starmap(_render, ((i, size) for i in range(count)), chunksize=256)))
    captions = []
    for i in range(count):
        rng = random.Random(f"captions-{i}")
        captions.append([sample_caption(critter(i), rng) for _ in range(CAPTIONS_PER_CRITTER)])
    furs, backdrops = [FURS[i] for i in (0, 1, 2, 3, 4, 5, 6, 7)], [BACKDROPS[i] for i in (3, 0, 5, 4, 2, 1, 6, 7)]
    prompts = [f"a photo of a {f} {s} on a {b} background" for f, s, b in zip(furs, SPECIES, backdrops, strict=True)]
    prompts += [f"a photo of a {s}" for s in SPECIES]
    prompts += [f"a photo of a {s} wearing glasses" for s in SPECIES[:4]]
    prompts += [f"a photo of a {s} wearing a hat" for s in SPECIES[4:]]
    return CaptionedImages(torch.from_numpy(np.load(cache)).permute(0, 3, 1, 2).contiguous(), captions, prompts)


def _render(i: int, size: int) -> np.ndarray:
    return render(critter(i), size)


def folder(path: Path, size: int) -> CaptionedImages:
    names = sorted(p for p in path.glob("*.png") if p.with_suffix(".txt").exists())
    if len(names) <= HELD_OUT:
        raise SystemExit(f"error: {path} holds {len(names)} pairs of name.png and name.txt; more than {HELD_OUT} are needed")
    images = [np.asarray(ImageOps.fit(Image.open(p).convert("RGB"), (size, size))) for p in names]
    captions = [[p.with_suffix(".txt").read_text().strip()] for p in names]
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return CaptionedImages(tensor, captions, [c[0] for c in captions[:24]])


def to_unit(images: Tensor, device: str) -> Tensor:
    """uint8 [B, 3, S, S] -> float in [-1, 1]."""
    return images.to(device).float() / 127.5 - 1


def train_tokenizer(data: CaptionedImages, max_tokens: int, path: Path) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) whose merges come from the captions, so that every common word is one token."""
    if not path.exists():
        alphabet = sorted(ByteLevel.alphabet())
        pieces = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(a + "</w>" for a in alphabet)]
        base = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
        # The printable characters as words of their own: without them "cat!" would hold an unknown token.
        corpus = [c for variants in data.captions[:20_000] for c in variants] + [" ".join(string.printable)] * 2
        tokenizer = base.train_new_from_iterator(corpus, vocab_size=len(pieces) + 2_000)
        tokenizer.model_max_length = max_tokens
        tokenizer.save_pretrained(path)
    return CLIPTokenizer.from_pretrained(path)


# ---------------------------------------------------------------- one training loop for both stages


class Stage:
    """A resumable training loop: AdamW, warm-up, constant rate, linear fall over the last quarter, EMA, CSV log.

    `loss(step, rng)` must draw only from `rng`, which depends on (seed, step) alone, so that resuming changes nothing.
    """

    def __init__(
        self, name: str, model: nn.Module, steps: int, minutes: float, lr: float, ema: float, args: argparse.Namespace
    ) -> None:
        self.name, self.model, self.args = name, model.to(args.device), args
        self.steps, self.minutes, self.lr = steps, minutes, lr
        self.path = args.work / f"{name}.ckpt"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)

        self.ema = AveragedModel(model, multi_avg_fn=warmed_ema(ema))
        self.step, self.seconds = 0, 0.0
        if self.path.exists():
            saved = torch.load(self.path, map_location=args.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.ema.load_state_dict(saved["ema"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = saved["step"], saved["seconds"]
            print(f"{name}: going on from step {self.step}", flush=True)

    def run(self, loss: Callable[[int, torch.Generator], Tensor], at_checkpoint: Callable[[], dict[str, float]]) -> None:
        start, saved_at, done_before = time.time(), time.time(), self.seconds
        first, losses = self.step, []
        while self._share() < 1:
            rng = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.step)
            self.optimizer.param_groups[0]["lr"] = self.lr * self._rate()
            value = loss(self.step, rng)
            self.optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.ema.update_parameters(self.model)
            self.step += 1
            losses.append(value.detach())
            self.seconds = done_before + time.time() - start
            if len(losses) == 100:
                row = {"step": self.step, "seconds": round(self.seconds), "loss": torch.stack(losses).mean().item()}
                print(f"{self.name} {row} {(self.step - first) / (time.time() - start):.2f} steps/s", flush=True)
                self._log(row)
                losses = []
            if time.time() - saved_at > 60 * self.args.save_minutes or self._share() >= 1:
                self._save()
                print(f"{self.name} checkpoint at step {self.step}: {at_checkpoint()}", flush=True)
                saved_at = time.time()

    def _share(self) -> float:
        """How much of the run is done, 0 .. 1."""
        return max(self.step / self.steps, self.seconds / 60 / self.minutes)

    def _rate(self) -> float:
        return min(1.0, (self.step + 1) / 200, (1 - self._share()) / 0.25)

    def _log(self, row: dict[str, float]) -> None:
        path = self.args.work / f"{self.name}.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)


# ---------------------------------------------------------------- the VAE


def train_vae(data: CaptionedImages, args: argparse.Namespace) -> AutoencoderKL:
    """A factor-8 AutoencoderKL trained on squared error and KL. Few channels at full resolution: there is its cost."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=args.latent_channels,
        norm_num_groups=8,
        sample_size=args.size,
    )
    stage = Stage("vae", vae, args.vae_steps, float("inf"), args.vae_lr, 0.998, args)
    held_out = to_unit(data.images[-HELD_OUT:], args.device)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(data.images) - HELD_OUT, (args.vae_batch,), generator=rng)
        images = to_unit(data.images[index], args.device)
        with torch.autocast(args.device, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=rng).to(args.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        output: Tensor = nn.functional.mse_loss(decoded.float(), images) + args.kl * kl
        return output

    @torch.no_grad()
    def round_trip() -> dict[str, float]:
        averaged: Any = stage.ema.module
        decoded = averaged.decode(averaged.encode(held_out).latent_dist.mode()).sample.clamp(-1, 1)
        save_image((torch.cat([held_out[:16], decoded[:16]]) + 1) / 2, args.work / "vae.png", nrow=16)
        error = ((decoded - held_out) / 2).square().flatten(1).mean(1)
        return {"psnr": -10 * error.log10().mean().item()}

    stage.run(loss, round_trip)
    return stage.ema.module.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, args: argparse.Namespace) -> Tensor:
    """uint8 images -> the posteriors' means, [N, C, S/8, S/8] on the CPU. Kept in the work folder."""
    # Of this VAE: more steps make another one.
    cache = args.work / f"latents-{args.start.name if args.start else args.vae_steps}.pt"
    if not cache.exists():
        torch.save(torch.cat([vae.encode(to_unit(b, args.device)).latent_dist.mode().cpu() for b in images.split(64)]), cache)
    output: Tensor = torch.load(cache, weights_only=True)
    return output


# ---------------------------------------------------------------- UNet and text encoder


def train_unet(
    data: CaptionedImages, latents: Tensor, vae: AutoencoderKL, tokenizer: CLIPTokenizer, args: argparse.Namespace
) -> None:
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.text_width,
            intermediate_size=4 * args.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=args.max_tokens,
            projection_dim=args.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=args.latent_channels,
        out_channels=args.latent_channels,
        block_out_channels=tuple(args.unet_channels),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=args.text_width,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    if args.start:
        unet = UNet2DConditionModel.from_pretrained(args.start / "unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(args.start / "text_encoder", dtype=torch.float32)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    stage = Stage("unet", model, args.unet_steps, args.unet_minutes, args.unet_lr, 0.9995, args)

    unique = sorted({c for variants in data.captions for c in variants})
    rows = {caption: row for row, caption in enumerate(unique)}
    tokens = tokenizer([*unique, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    choices = torch.tensor([[rows[v[k % len(v)]] for k in range(CAPTIONS_PER_CRITTER)] for v in data.captions])
    abar = scheduler.alphas_cumprod

    def loss(step: int, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(latents) - HELD_OUT, (args.unet_batch,), generator=rng)
        z = latents[index]
        caption = choices[index, torch.randint(CAPTIONS_PER_CRITTER, index.shape, generator=rng)]
        caption[torch.rand(index.shape, generator=rng) < 0.1] = len(unique)  # the empty prompt
        t = torch.randint(1000, index.shape, generator=rng)
        eps = torch.randn(z.shape, generator=rng)
        alpha, sigma = (abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1))
        snr = abar[t] / (1 - abar[t])
        weight = (snr.clamp(max=5) / (snr + 1)).to(args.device)
        # On a CPU bfloat16 speeds up the VAE's wide layers and slows down these small ones.
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"):
            text = text_encoder(tokens[caption].to(args.device)).last_hidden_state
            v = unet((alpha * z + sigma * eps).to(args.device), t.to(args.device), text).sample
        error = (v.float() - (alpha * eps - sigma * z).to(args.device)).square().mean((1, 2, 3))
        output: Tensor = (weight * error).mean()
        return output

    def export() -> dict[str, float]:
        averaged: Any = stage.ema.module
        pipeline = StableDiffusionPipeline(
            vae=vae,
            unet=averaged["unet"].eval(),
            text_encoder=averaged["text_encoder"].eval(),
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        start = torch.randn((len(data.prompts), *latents.shape[1:]), generator=torch.Generator().manual_seed(0)).to(args.device)
        images = pipeline(data.prompts, num_inference_steps=25, guidance_scale=4.0, latents=start, output_type="pt").images
        save_image(images, args.work / "samples.png", nrow=8)
        save_image(images, args.work / f"samples-{stage.step:06d}.png", nrow=8)
        # The EMA weights go on being averaged in fp32: what is saved in fp16 is a copy.
        halves = StableDiffusionPipeline(
            **{
                **pipeline.components,
                "unet": half(averaged["unet"]),
                "vae": half(vae),
                "text_encoder": half(averaged["text_encoder"]),
            },
            requires_safety_checker=False,
        )
        halves.save_pretrained(args.output)
        # transformers computes in the type that its config names, diffusers in float32: without this a plain
        # StableDiffusionPipeline.from_pretrained(folder) would mix the two.
        config = args.output / "text_encoder" / "config.json"
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
        return {"minutes": round(stage.seconds / 60, 1)}

    stage.run(loss, export)


def half(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).half()


if __name__ == "__main__":
    main()
