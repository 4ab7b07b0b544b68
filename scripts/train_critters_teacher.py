"""Train a small latent diffusion model from captioned images and save it in diffusers' folder layout.

    python scripts/train_critters_teacher.py --work runs/teacher --output my_teacher            # the critters world
    python scripts/train_critters_teacher.py --data DIR --work runs/mine --output my_teacher    # DIR: name.png + name.txt
    python scripts/train_critters_teacher.py --start dds_train/critters/teacher --work runs/more --output better   # continue

    python scripts/train_critters_teacher.py --denoiser sd3 --start dds_train/critters/teacher --work runs/flow --output flow

Stages: tokenizer, AutoencoderKL, then the denoiser and its text encoders together (10 % empty prompts). Each stage writes a
checkpoint every few minutes and resumes from it when the same command runs again; the folder in `--output` holds EMA weights
in fp16, rewritten at every checkpoint of the denoiser; `samples.png` in `--work` shows them. The learning rate is constant and
falls linearly to zero over the last quarter of `--steps` (or of `--minutes`, if that ends sooner), so a run can be extended or
ended early.
"""

import argparse
import copy
import csv
import math
import os
import random
import string
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageOps
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torchvision.utils import save_image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

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
    train_denoiser(data, latents * vae.config.scaling_factor, vae, tokenizer, args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="critters", help="'critters' or a folder of name.png + name.txt")
    parser.add_argument("--count", type=int, default=60_000, help="number of critters")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished teacher")
    parser.add_argument(
        "--start", type=Path, help="a finished teacher: take its VAE, and its UNet and text encoder to go on with"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=5_000)
    parser.add_argument("--vae-batch", type=int, default=32)
    parser.add_argument("--vae-lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the KL term, both terms being means")
    parser.add_argument("--latent-channels", type=int, default=12)
    parser.add_argument("--denoiser", choices=DENOISERS, default="unet", help="sd3: a transformer and a rectified flow")
    parser.add_argument("--steps", type=int, default=18_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end there if not done by then")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--unet-channels", type=int, nargs=2, default=(64, 128))
    parser.add_argument("--patch-size", type=int, default=1)
    parser.add_argument("--transformer-layers", type=int, default=5)
    parser.add_argument("--transformer-heads", type=int, default=4, help="of 32 channels each")
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


# ---------------------------------------------------------------- the denoiser and its text encoders


class Denoiser(ABC):
    """The networks of one kind of teacher, their loss, and the pipeline that they are saved as."""

    networks: nn.ModuleDict  # by their names in the pipeline

    @abstractmethod
    def errors(self, z: Tensor, tokens: Tensor, rng: torch.Generator) -> Tensor:
        """Weighted squared errors [B] at random noise, for scaled latents [B,C,h,w] and captions [B,L]."""

    @abstractmethod
    def pipeline(self, networks: dict[str, nn.Module], vae: AutoencoderKL) -> DiffusionPipeline: ...


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class UNetDenoiser(Denoiser):
    """v-prediction (arXiv 2202.00512) by a UNet, as in Stable Diffusion 2, with min-SNR weights (arXiv 2303.09556)."""

    def __init__(self, tokenizer: CLIPTokenizer, size: int, args: argparse.Namespace) -> None:
        self.tokenizer, self.device = tokenizer, args.device
        self.scheduler = DDIMScheduler(
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
        else:
            unet = UNet2DConditionModel(
                sample_size=size,
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
            text_encoder = CLIPTextModel(text_config(tokenizer, args.text_width, layers=2))
        self.networks = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})

    def errors(self, z: Tensor, tokens: Tensor, rng: torch.Generator) -> Tensor:
        abar = self.scheduler.alphas_cumprod
        t = torch.randint(1000, z.shape[:1], generator=rng)
        eps = torch.randn(z.shape, generator=rng)
        alpha, sigma = (abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1))
        snr = abar[t] / (1 - abar[t])
        weight = (snr.clamp(max=5) / (snr + 1)).to(self.device)
        text = self.networks["text_encoder"](tokens).last_hidden_state
        v = self.networks["unet"]((alpha * z + sigma * eps).to(self.device), t.to(self.device), text).sample
        output: Tensor = weight * (v.float() - (alpha * eps - sigma * z).to(self.device)).square().mean((1, 2, 3))
        return output

    @torch.no_grad()
    def velocity(self, z: Tensor, eps: Tensor, sigma: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The expected velocity of the rectified flow at sigma [B], each rounded to a step of this model's noise.

        Divided by alpha + sigma, variance-preserving noise is a straight path. Beyond its last step, sigma stays, and eps - z
        is the answer.
        """
        abar = self.scheduler.alphas_cumprod
        scale = abar.sqrt() + (1 - abar).sqrt()
        steps = (1 - abar).sqrt() / scale  # rising
        t = torch.searchsorted(steps, sigma).clamp(max=len(steps) - 1)
        known = sigma <= steps[-1]
        sigma = torch.where(known, steps[t], sigma)
        x = torch.lerp(z, eps, sigma.view(-1, 1, 1, 1)) * scale[t].view(-1, 1, 1, 1)
        text = self.networks["text_encoder"](tokens).last_hidden_state
        v = self.networks["unet"](x.to(self.device), t.to(self.device), text).sample.float().cpu()
        alpha, noise = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
        expected = (alpha * v + noise * x) - (alpha * x - noise * v)
        return sigma, torch.where(known.view(-1, 1, 1, 1), expected, eps - z)

    def pipeline(self, networks: dict[str, nn.Module], vae: AutoencoderKL) -> DiffusionPipeline:
        return StableDiffusionPipeline(
            vae=vae,
            **networks,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


class SD3Denoiser(Denoiser):
    """A rectified flow by a transformer, as in Stable Diffusion 3 (arXiv 2403.03206): sigma is logit-normal, stratified over
    the batch. The first CLIP model is `--start`'s, frozen, or trained as the second is; T5 is left out."""

    def __init__(self, tokenizer: CLIPTokenizer, size: int, args: argparse.Namespace) -> None:
        self.tokenizer, self.device, self.start = tokenizer, args.device, None
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        widths = (args.text_width, args.text_width // 4)
        # The pipeline takes the last layer but one.
        clips = [CLIPTextModelWithProjection(text_config(tokenizer, width, layers=3)) for width in widths]
        if args.start:
            self.start = UNetDenoiser(tokenizer, size, args)
            self.start.networks.requires_grad_(False)
            take_text_encoder(clips[0], self.start.networks["text_encoder"])
        width = args.transformer_heads * 32
        transformer = SD3Transformer2DModel(
            sample_size=size,
            patch_size=args.patch_size,
            in_channels=args.latent_channels,
            out_channels=args.latent_channels,
            num_layers=args.transformer_layers,
            num_attention_heads=args.transformer_heads,
            attention_head_dim=32,
            joint_attention_dim=sum(widths),
            caption_projection_dim=width,
            pooled_projection_dim=sum(widths),
            pos_embed_max_size=2 * size,
            qk_norm="rms_norm",
        )
        for name, parameter in transformer.named_parameters():
            if ("norm" in name and "linear" in name) or "proj_out" in name:
                nn.init.zeros_(parameter)  # each block begins as the identity (adaLN-Zero, arXiv 2212.09748)
        self.networks = nn.ModuleDict({"transformer": transformer, "text_encoder": clips[0], "text_encoder_2": clips[1]})

    def errors(self, z: Tensor, tokens: Tensor, rng: torch.Generator) -> Tensor:
        count = len(z)
        uniform = (torch.randperm(count, generator=rng) + torch.rand(count, generator=rng)) / count
        sigma = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).sigmoid()
        eps = torch.randn(z.shape, generator=rng)
        v = eps - z
        if self.start:
            sigma, v = self.start.velocity(z, eps, sigma, tokens)
        z_t = torch.lerp(z, eps, sigma.view(-1, 1, 1, 1)).to(self.device)
        outputs = [self.networks[name](tokens, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
        text = torch.cat([output.hidden_states[-2] for output in outputs], 2)
        # In T5's place the pipeline puts zeros, 256 of them unless told otherwise. Equal tokens stay equal, so N of them act as
        # one whose attention weighs N times; N is random, so that any number will do.
        text = nn.functional.pad(text, (0, 0, 0, 1))
        zeros = 256 ** torch.rand((), generator=rng).item()
        with LastKeyWeighs(zeros):
            answer = self.networks["transformer"](
                z_t,
                encoder_hidden_states=text,
                pooled_projections=torch.cat([output.text_embeds for output in outputs], 1),
                timestep=1000 * sigma.to(self.device),
            ).sample
        output: Tensor = (answer.float() - v.to(self.device)).square().mean((1, 2, 3))
        return output

    def pipeline(self, networks: dict[str, nn.Module], vae: AutoencoderKL) -> DiffusionPipeline:
        vae.register_to_config(shift_factor=0.0)
        return StableDiffusion3Pipeline(
            vae=vae,
            **networks,
            text_encoder_3=None,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer,
            tokenizer_3=None,
            scheduler=self.scheduler,
        )


def take_text_encoder(clip: CLIPTextModelWithProjection, trained: CLIPTextModel) -> None:
    """Make `clip`'s last layer but one answer as the last one of `trained` does, and freeze it."""
    last = clip.text_model.encoder.layers[-1]
    clip.text_model.encoder.layers = clip.text_model.encoder.layers[:-1]
    clip.text_model.load_state_dict(trained.state_dict())
    clip.text_model.encoder.layers.append(last)
    for output in (last.self_attn.out_proj, last.mlp.fc2):  # the layer that `trained` lacks is the identity
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
    nn.init.eye_(clip.text_projection.weight)
    clip.requires_grad_(False)


class LastKeyWeighs(TorchFunctionMode):
    """Within it, attention counts the last key `times` times."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.bias = math.log(times)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            mask = args[0].new_zeros(args[1].shape[-2])
            mask[-1] = self.bias
            kwargs["attn_mask"] = mask.expand(1, 1, args[0].shape[-2], -1)
        return func(*args, **kwargs)


DENOISERS: dict[str, Callable[[CLIPTokenizer, int, argparse.Namespace], Denoiser]] = {"unet": UNetDenoiser, "sd3": SD3Denoiser}


def train_denoiser(
    data: CaptionedImages, latents: Tensor, vae: AutoencoderKL, tokenizer: CLIPTokenizer, args: argparse.Namespace
) -> None:
    denoiser = DENOISERS[args.denoiser](tokenizer, latents.shape[-1], args)
    stage = Stage(args.denoiser, denoiser.networks, args.steps, args.minutes, args.lr, 0.9995, args)

    unique = sorted({c for variants in data.captions for c in variants})
    rows = {caption: row for row, caption in enumerate(unique)}
    tokens = tokenizer([*unique, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    choices = torch.tensor([[rows[v[k % len(v)]] for k in range(CAPTIONS_PER_CRITTER)] for v in data.captions])

    def loss(step: int, rng: torch.Generator) -> Tensor:
        index = torch.randint(len(latents) - HELD_OUT, (args.batch,), generator=rng)
        caption = choices[index, torch.randint(CAPTIONS_PER_CRITTER, index.shape, generator=rng)]
        caption[torch.rand(index.shape, generator=rng) < 0.1] = len(unique)  # the empty prompt
        # On a CPU bfloat16 speeds up the VAE's wide layers and slows down these small ones.
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"):
            return denoiser.errors(latents[index], tokens[caption].to(args.device), rng).mean()

    def export() -> dict[str, float]:
        averaged = {name: network.eval() for name, network in stage.ema.module.named_children()}
        pipeline: Any = denoiser.pipeline(averaged, vae)
        pipeline.set_progress_bar_config(disable=True)
        start = torch.randn((len(data.prompts), *latents.shape[1:]), generator=torch.Generator().manual_seed(0)).to(args.device)
        images = pipeline(data.prompts, num_inference_steps=25, guidance_scale=4.0, latents=start, output_type="pt").images
        save_image(images, args.work / "samples.png", nrow=8)
        save_image(images, args.work / f"samples-{stage.step:06d}.png", nrow=8)
        # The EMA weights go on being averaged in fp32: what is saved in fp16 is a copy.
        denoiser.pipeline({name: half(network) for name, network in averaged.items()}, half(vae)).save_pretrained(args.output)
        # transformers computes in the type that its config names, diffusers in float32: without this a plain
        # from_pretrained(folder) would mix the two.
        for config in args.output.glob("text_encoder*/config.json"):
            config.write_text(config.read_text().replace('"float16"', '"float32"'))
        return {"minutes": round(stage.seconds / 60, 1)}

    stage.run(loss, export)


def half(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).half()


if __name__ == "__main__":
    main()
