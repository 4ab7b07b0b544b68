"""What editors are measured on: critters, the user's pictures, a list of edits, PIE-Bench."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import to_tensor
from dds_train.critters.world import EVALUATION_SEED, Critter, critter
from dds_train.errors import UserError
from dds_train.evaluation.metrics.scores import EvaluationItem
from dds_train.evaluation.pie_bench import is_pie_bench, read_pie_bench
from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.files import read_mask, rounded
from dds_train.images.find import find_inputs
from dds_train.images.input_image import read_input_image
from dds_train.runs.digest import file_digest


@dataclass(frozen=True)
class LazyItem:
    """A case that is read when it is needed: thousands of pictures do not fit into memory."""

    name: str
    size: tuple[int, int]  # (H, W)
    source: str
    target: str
    identity: Any  # changes with anything that results depend on; plain data
    load: Callable[[], EvaluationItem]


def draw_critters(cfg: DictConfig) -> tuple[list[Critter], list[Critter], dict[str, Any]]:
    """`cfg.critters.count` unseen ones, their exact truths, and what these change."""
    given, change = (OmegaConf.to_container(part, resolve=True) for part in (cfg.critters.source, cfg.critters.edit))
    try:
        sources = [critter(EVALUATION_SEED + number, **given) for number in range(cfg.critters.count)]  # type: ignore[arg-type]
        targets = [source.replaced(**change) for source in sources]  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"given and change: {error}") from error
    if any(source == target for source, target in zip(sources, targets, strict=True)):
        raise UserError(f"change={change}: some critters are so already; say so in given, such as critters.source.species=cat")
    return sources, targets, change  # type: ignore[return-value]


def find_entries(cfg: DictConfig) -> list[LazyItem]:
    """`cfg` is that of evaluate. Every picture is read once, so that one that cannot be is named before any work is done."""
    if cfg.image is None:
        return critter_entries(cfg)
    return pie_bench_entries(cfg) if is_pie_bench(cfg.image) else picture_entries(cfg)


def critter_entries(cfg: DictConfig) -> list[LazyItem]:
    sources, truths, change = draw_critters(cfg)

    def entry(number: int, source: Critter, truth: Critter) -> LazyItem:
        name = f"{number:04d} {full_caption(source).removeprefix('a photo of ')}"

        def load() -> EvaluationItem:
            before, after = to_tensor(source)[None], to_tensor(truth)[None]
            return EvaluationItem(name, before, cfg.source, cfg.target, truth=after, critter=source, change=change)

        size = to_tensor(source).shape[-2], to_tensor(source).shape[-1]
        return LazyItem(name, size, cfg.source, cfg.target, [asdict(source), asdict(truth), cfg.source, cfg.target], load)

    return [entry(number, *both) for number, both in enumerate(zip(sources, truths, strict=True))]


def picture_entries(cfg: DictConfig) -> list[LazyItem]:
    """The user's pictures, with the sentences, masks and truths that a list may have for each."""
    if not is_edit_list(cfg.image):
        found = find_inputs(cfg.image, cfg.output_dir)
        return [image_item(cfg, name, path, cfg.source, cfg.target) for name, path in found]
    entries = []
    for number, one in enumerate(read_edit_list(cfg.image)):
        targets = one.target or (cfg.target,)
        for which, target in enumerate(targets):
            name = f"{number:04d} {one.image.stem}" + (f" {which}" if len(targets) > 1 else "")
            mask = Path(one.mask) if one.mask not in (None, "auto") else None
            truth = Path(one.truth) if one.truth else None
            if truth and len(targets) > 1:
                raise UserError(
                    f"image={cfg.image}: {one.image.name} has one truth and {len(targets)} targets; give a line to each"
                )
            entries.append(image_item(cfg, name, one.image, one.source or cfg.source, target, mask, truth))
    return entries


def image_item(
    cfg: DictConfig, name: str, path: Path, source: str, target: str, mask: Path | None = None, truth: Path | None = None
) -> LazyItem:
    def image_of(file: Path) -> Tensor:
        return rounded(read_input_image(file, cfg.max_side).image)  # as a result is, which goes through a file

    def load() -> EvaluationItem:
        image = image_of(path)
        size = image.shape[-2], image.shape[-1]
        true = image_of(truth) if truth else None
        if true is not None and true.shape != image.shape:
            raise UserError(f"{truth}: is {true.shape[-1]} x {true.shape[-2]}, and {path} is {size[1]} x {size[0]}")
        return EvaluationItem(name, image, source, target, read_mask(mask, size)[None].round() if mask else None, true)

    image = load().image
    files = [file_digest(file) for file in (path, mask, truth) if file]
    return LazyItem(name, (image.shape[-2], image.shape[-1]), source, target, [files, source, target], load)


def pie_bench_entries(cfg: DictConfig) -> list[LazyItem]:
    entries = []
    for one in read_pie_bench(cfg.image):
        plain = image_item(cfg, one.name, one.image, one.source, one.target)
        if plain.size != tuple(one.mask.shape[-2:]):
            raise UserError(
                f"{one.image}: is {plain.size[1]} x {plain.size[0]}; masks of PIE-Bench fit 512 x 512 (max_side=null)"
            )

        def load(plain: LazyItem = plain, mask: Tensor = one.mask) -> EvaluationItem:
            return replace(plain.load(), mask=mask)

        entries.append(replace(plain, load=load))
    return entries
