"""Edit pictures with a trained translator, one pass each."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dds_train import build
from dds_train.diffusion.device import find_device
from dds_train.errors import UserError
from dds_train.images.files import read_mask, save_image
from dds_train.images.find import find_inputs
from dds_train.images.grids import before_after_grid, fit_into
from dds_train.images.input_image import InputImage, check_readable, read_input_image
from dds_train.images.masks import MaskFinder
from dds_train.images.streaming import WriteBehind, batches, read_ahead, within_memory
from dds_train.methods.masks import automatic_mask, feathered, on_background, pixel_mask
from dds_train.methods.requests import AUTO, keeps_background
from dds_train.pipeline import Translator
from dds_train.runs.digest import digest, file_digest
from dds_train.runs.record import Record
from dds_train.translator import Task, TranslatorConfig, load_translator, read_config
from dds_train.translator.task import CAPTION

UNUSED = ("loss", "data", "translator", "optimizer", "scheduler", "trainer", "logger")
SHOWN = 64  # pictures in the overview


def run(cfg: DictConfig) -> None:
    output_dir = Path(cfg.output_dir)
    found = find_inputs(cfg.image, output_dir)
    card = read_config(Path(cfg.ckpt))
    task = check_choices(cfg, card)
    sizes = check_readable(found, cfg.max_side)
    mask_finder = MaskFinder(cfg.mask)
    masks = {path: mask_finder(path) for _, path in found}
    translator = build_translator(cfg, card)
    results = {path: output_dir / result_name(name, path, cfg.format) for name, path in found}
    with Record(output_dir, "predict") as record:
        record.claim(settings(cfg))
        edit_all(cfg, translator, task, results, masks, sizes, record)


def edit_all(
    cfg: DictConfig,
    translator: Translator,
    task: Task | None,
    results: dict[Path, Path],
    masks: dict[Path, str | None],
    sizes: dict[Path, tuple[int, int]],
    record: Record,
) -> None:
    output_dir = Path(cfg.output_dir)
    names = {path: result.relative_to(output_dir).as_posix() for path, result in results.items()}
    keys = {path: input_digest(path, masks[path]) for path in results}
    todo = [path for path in results if not record.is_done(names[path], keys[path])]
    record.strike(*(names[path] for path in todo))
    if len(todo) < len(results):
        print(f"{len(results) - len(todo)} of {len(results)} pictures are in {output_dir} already", flush=True)
    build.save_config(cfg, output_dir, unused=UNUSED)

    def done(path: Path) -> None:
        record.add(names[path], keys[path])
        bar.update()

    with tqdm(total=len(todo), desc="predict", unit="image") as bar, WriteBehind() as writer:
        read = partial(read_batch, max_side=cfg.max_side)
        for batch, pictures in read_ahead(read, batches(todo, sizes.__getitem__, cfg.batch_size)):
            items = [(picture, masks[path]) for path, picture in zip(batch, pictures, strict=True)]
            edited = within_memory(partial(edit, cfg, translator, task), items, "give a smaller tile=")
            for path, picture, result in zip(batch, pictures, edited, strict=True):
                writer.put(partial(save_image, result, results[path], picture.alpha_and_profile), partial(done, path))
    save_before_after_grid(list(results.items())[:SHOWN], output_dir / "before_after.png")
    print(f"{len(results)} pictures in {output_dir}, all beside their inputs in {output_dir / 'before_after.png'}", flush=True)


def check_choices(cfg: DictConfig, card: TranslatorConfig) -> Task | None:
    """The task that is asked for; None if an instruction is given in its stead."""
    if cfg.format not in ("png", "same"):
        raise UserError(f"format={cfg.format}: take png or same (as the input's)")
    task = card.choose(cfg.task) if cfg.task or not cfg.prompt or len(card.tasks) == 1 else None
    if cfg.mask == AUTO and (task is None or CAPTION in task.source + task.target):
        raise UserError("mask=auto needs a task that says what inputs show and what is wanted; give task=NAME or a mask file")
    return task


def build_translator(cfg: DictConfig, card: TranslatorConfig) -> Translator:
    parts = build.build_checkpoint(cfg.teacher, find_device(cfg.device))
    if cfg.teacher.path is None:
        parts = replace(parts, path=card.teacher)
    return Translator(load_translator(Path(cfg.ckpt), parts)[0], card, parts, cfg.tile, cfg.overlap)


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What determines the results, but for the pictures and their masks."""
    ckpt = Path(cfg.ckpt)
    weights = ckpt / "translator.safetensors" if ckpt.is_dir() else ckpt
    keys = (
        "task",
        "prompt",
        "strength",
        "max_side",
        "feather",
        "exact_background",
        "tile",
        "overlap",
        "format",
        "seed",
    )
    own = {key: cfg[key] for key in keys}
    return {**own, "auto_mask": dict(cfg.auto_mask), "weights": file_digest(weights), "teacher": cfg.teacher.path}


def input_digest(path: Path, mask: str | None) -> str:
    return digest([file_digest(path), mask if mask in (None, AUTO) else file_digest(mask)])


def result_name(name: str, path: Path, form: str) -> str:
    return f"{name}{path.suffix if form == 'same' else '.png'}"


def read_batch(paths: Sequence[Path], max_side: int | None) -> list[InputImage]:
    return [read_input_image(path, max_side) for path in paths]


def edit(
    cfg: DictConfig, translator: Translator, task: Task | None, items: Sequence[tuple[InputImage, str | None]]
) -> list[Tensor]:
    """Results [3,H,W] of pictures of one size, each with its mask; on their own background, at their own size, where wanted."""
    images = torch.cat([picture.image for picture, _ in items])
    instruction = cfg.prompt or (task.instruction if task else "")
    after = translator.translate(images, instruction, cfg.strength)
    exact = [keeps_background(cfg.exact_background, mask) for _, mask in items]
    if not any(exact) and not any(mask for _, mask in items):
        return list(after)
    before = translator.translate(images, instruction, 0.0) if any(exact) else images
    results = []
    for number, (picture, mask) in enumerate(items):
        base = picture.original if exact[number] else picture.image
        pixels = read_pixels(cfg, translator, task, picture, mask, (base.shape[-2], base.shape[-1]))
        results.append(on_background(base, pixels, before[number : number + 1], after[number : number + 1])[0])
    return results


def read_pixels(
    cfg: DictConfig, translator: Translator, task: Task | None, picture: InputImage, mask: str | None, size: tuple[int, int]
) -> Tensor:
    """The mask as [1,1,H,W], soft at its edge."""
    if mask is None:
        return torch.ones(1, 1, *size)
    if mask != AUTO:
        return feathered(read_mask(mask, size)[None], cfg.feather)
    assert task is not None, "checked before anything was loaded"
    prompts = translator.text.condition(task.source), translator.text.condition(task.target)
    z = translator.autoencoder.encode(picture.image)
    found = automatic_mask(translator.parts.teacher(), z, *prompts, seed=cfg.seed, **cfg.auto_mask).cpu()
    pixels = pixel_mask(found, translator.autoencoder.factor, picture.size)
    return feathered(F.interpolate(pixels, size, mode="nearest"), cfg.feather)


def save_before_after_grid(pairs: Sequence[tuple[Path, Path]], path: Path) -> None:
    small = [[fit_into(read_input_image(one, None).image[0], 256) for one in pair] for pair in pairs]
    save_image(before_after_grid([(before, after) for before, after in small]), path)
