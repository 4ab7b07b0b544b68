"""Edit pictures one at a time, by descent on their latents."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from dds_train import build
from dds_train.commands.inputs import check_readable, find_pictures, read_picture
from dds_train.data.images import overview, save_image, strip
from dds_train.editing.optimize import optimize_latent
from dds_train.errors import UserError

UNUSED = ("data", "translator", "trainer", "logger")


def run(cfg: DictConfig) -> None:
    pictures = find_pictures(cfg.image)
    check_readable(pictures)
    device = build.build_device(cfg.device)
    pretrained = build.build_pretrained(cfg.teacher, device)
    loss = build.build_loss(cfg.loss)
    optimizer, scheduler = build.build_partial(cfg.optimizer), build.build_partial(cfg.scheduler)
    teacher, codec, text = pretrained.teacher(), pretrained.codec(), pretrained.text_encoder()
    source, target = text.condition(cfg.source), text.condition(cfg.target, cfg.loss.get("negative"))
    t_range = build.build_t_range(cfg.t_range, len(teacher.schedule))

    output_dir = Path(cfg.output_dir)
    build.save_config(cfg, output_dir, unused=UNUSED)
    pairs = []
    with tqdm(total=len(pictures) * cfg.steps, desc="optimize", unit="step") as bar:
        for name, path in pictures:
            picture = read_picture(path, cfg.max_side)
            way = [picture.image]
            z = z_source = codec.encode(picture.image)
            for step in optimize_latent(
                teacher,
                z_source,
                source,
                target,
                loss=loss,
                steps=cfg.steps,
                guidance=cfg.guidance,
                t_range=t_range,
                seed=cfg.seed,
                optimizer=optimizer,
                scheduler=scheduler,
            ):
                z = step.z
                if is_snapshot(step.index, cfg.steps, cfg.snapshots):
                    way.append(codec.decode(z, picture.size).cpu())
                bar.update()
                bar.set_postfix(image=name, grad_rms=f"{step.grad_rms:.4f}", refresh=False)
            if not torch.isfinite(z).all():
                raise UserError(f"{path}: the latent left the finite numbers; lower lr={cfg.lr} or guidance={cfg.guidance}")
            result = codec.decode(z, picture.size).cpu()
            save_image(result[0], output_dir / f"{name}.png")
            save_image(strip([torch.cat([picture.image, result])]), output_dir / f"{name}_before_after.png")
            if cfg.snapshots:
                save_image(strip([torch.cat(way)]), output_dir / f"{name}_steps.png")
            pairs.append((picture.image[0], result[0]))
    if len(pairs) > 1:
        save_image(overview(pairs), output_dir / "before_after.png")
    print(f"{len(pairs)} pictures in {output_dir}", flush=True)


def is_snapshot(index: int, steps: int, count: int) -> bool:
    """Whether step `index` (1 .. steps) is one of `count` evenly spaced ones, the last among them."""
    return index * count // steps > (index - 1) * count // steps
