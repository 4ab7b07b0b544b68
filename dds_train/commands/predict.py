"""Edit pictures with a trained translator, one pass each."""

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from dds_train import build
from dds_train.commands.inputs import check_readable, find_pictures, read_picture
from dds_train.data.images import overview, save_image
from dds_train.errors import UserError
from dds_train.translator import load_translator, read_card

UNUSED = ("loss", "data", "translator", "optimizer", "scheduler", "trainer", "logger")


@torch.no_grad()
def run(cfg: DictConfig) -> None:
    pictures = find_pictures(cfg.image)
    check_readable(pictures)
    card = read_card(Path(cfg.ckpt))
    instruction = cfg.prompt or card.choose(cfg.task).instruction
    device = build.build_device(cfg.device)
    pretrained = build.build_pretrained(cfg.teacher, device)
    if cfg.teacher.path is None:
        pretrained = replace(pretrained, path=card.teacher)
    translator, _ = load_translator(Path(cfg.ckpt), pretrained)
    codec, text_encoder = pretrained.codec(), pretrained.text_encoder()  # the teacher's UNet only if the translator is on it
    text = text_encoder.embed(instruction)
    if (translator.latent_channels, translator.text_dim) != (codec.channels, text.shape[-1]):
        raise UserError(f"teacher.path={pretrained.path} is not the teacher that {cfg.ckpt} was trained with ({card.teacher})")
    translator.to(device)

    output_dir = Path(cfg.output_dir)
    build.save_config(cfg, output_dir, unused=UNUSED)
    pairs = []
    for name, path in tqdm(pictures, desc="predict", unit="image"):
        picture = read_picture(path, cfg.max_side)
        z = codec.encode(picture.image)
        z = translator(z, text, torch.tensor([cfg.strength], device=device))
        result = codec.decode(z, picture.size)[0].cpu()
        save_image(result, output_dir / f"{name}.png")
        pairs.append((picture.image[0], result))
    save_image(overview(pairs), output_dir / "before_after.png")
    print(f"{len(pairs)} pictures in {output_dir}, all beside their inputs in {output_dir / 'before_after.png'}", flush=True)
