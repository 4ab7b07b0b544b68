"""What methods are evaluated on: critters, the user's images, a list of edits, PIE-Bench."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import to_tensor
from dds_train.critters.world import SPLITS, Critter, counterfactuals
from dds_train.errors import UserError
from dds_train.evaluation.pie_bench import is_pie_bench, read_pie_bench
from dds_train.images.captions import CaptionFiles
from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.files import rounded
from dds_train.images.find import find_inputs
from dds_train.images.input_image import read_input_image
from dds_train.images.mask_image import read_mask
from dds_train.methods.prompts import CaptionedPrompts
from dds_train.runs.digest import file_digest
from dds_train.translator.task import CAPTION


@dataclass(frozen=True)
class ItemImages:
    """The images of an item."""

    image: Tensor  # [1,3,H,W] in [-1,1]
    mask: Tensor | None = None  # [1,1,H,W], 1 where the edit belongs; for metrics alone
    truth: Tensor | None = None  # [1,3,H,W], ground truth


@dataclass(frozen=True)
class EvaluationItem:
    """An edit to evaluate. Its images are read when they are needed: thousands of them do not fit into memory."""

    name: str
    source: str
    target: str
    size: tuple[int, int]  # (H, W)
    load: Callable[[], ItemImages]
    identity: Any = None  # plain data that changes with anything that results and their metrics depend on
    has_mask: bool = False
    has_truth: bool = False
    critter: Critter | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)  # attributes of the critter that the edit sets


def critter_items(
    count: int,
    attributes: Mapping[str, Any],
    changes: Mapping[str, Any],
    source: str,
    target: str,
    swap: Mapping[str, str] | None = None,
    split: str = "evaluation",
) -> list[EvaluationItem]:
    """Critters that no model is trained on.

    Args:
        attributes: of all sources, e.g. ``{"species": "cat"}``; None is no restriction.
        changes: attributes that the edit sets, e.g. ``{"species": "lion"}``; None is no change.
        source, target: prompts; {caption} in them is the full caption of the critter.
        swap: words of it, and what stands for them in the target; without any, the target has the caption of the ground truth.
        split: one of `SPLITS`: choose settings on "validation", report results on "evaluation".

    Raises:
        UserError: for attributes that do not exist, or an edit that changes nothing of a source.
    """
    attributes, changes = ({name: value for name, value in one.items() if value is not None} for one in (attributes, changes))
    if not changes:
        raise UserError("critters.edit: no attribute to change; give one, e.g. critters.edit.species=lion")
    try:
        sources, truths = counterfactuals(SPLITS[split], count, attributes, changes)
    except (TypeError, ValueError) as error:
        raise UserError(f"critters: {error}") from error

    def item(number: int, before: Critter, after: Critter) -> EvaluationItem:
        caption = full_caption(before)
        name = f"{number:04d} {caption.removeprefix('a photo of ')}"
        own_target = target if swap else target.replace(CAPTION, full_caption(after))
        prompts = CaptionedPrompts(lambda image: caption, swap)(Path(name), source, own_target)

        def load() -> ItemImages:
            return ItemImages(to_tensor(before)[None], truth=to_tensor(after)[None])

        height, width = to_tensor(before).shape[-2:]
        return EvaluationItem(
            name,
            *prompts,
            (height, width),
            load,
            identity=[asdict(before), asdict(after), *prompts],
            has_truth=True,
            critter=before,
            changes=changes,
        )

    return [item(number, *pair) for number, pair in enumerate(zip(sources, truths, strict=True))]


def image_items(
    images: str | Sequence[str],
    source: str,
    target: str,
    max_side: int | None,
    output_dir: str | Path,
    swap: Mapping[str, str] | None = None,
) -> list[EvaluationItem]:
    """Images of the user: files, folders, patterns, a list of edits or PIE-Bench's folder. Each is read once, so that one that
    cannot be read is named before any work is done.

    Args:
        source, target: prompts, for images without their own; {caption} in them is that of the image (`CaptionFiles`).
        swap: words of captions, and what stands for them in the target.
        max_side: images are scaled down to this many pixels on the longer side.
        output_dir: images in it are not inputs.

    Raises:
        UserError: naming the image, mask or ground truth that cannot be used.
    """
    if is_pie_bench(images):
        return pie_bench_items(images, max_side)
    if is_edit_list(images):
        return edit_list_items(images, source, target, max_side, swap)
    found = find_inputs(images, output_dir)
    prompts = CaptionedPrompts(CaptionFiles([path for _, path in found], images), swap)
    return [image_item(name, path, *prompts(path, source, target), max_side) for name, path in found]


def edit_list_items(
    path: str, source: str, target: str, max_side: int | None, swap: Mapping[str, str] | None
) -> list[EvaluationItem]:
    items, lines = [], read_edit_list(path)
    prompts = CaptionedPrompts(CaptionFiles([line.image for line in lines], path), swap)
    for number, line in enumerate(lines):
        targets = line.target or (target,)
        for which, own_target in enumerate(targets):
            name = f"{number:04d} {line.image.stem}" + (f" {which}" if len(targets) > 1 else "")
            mask = Path(line.mask) if line.mask not in (None, "auto") else None
            truth = Path(line.truth) if line.truth else None
            if truth and len(targets) > 1:
                raise UserError(
                    f"image={path}: {line.image.name} has one ground truth and {len(targets)} targets; write a line for each"
                )
            own = prompts(line.image, line.source or source, own_target, line.caption)
            items.append(image_item(name, line.image, *own, max_side, mask, truth))
    return items


def pie_bench_items(folder: str, max_side: int | None) -> list[EvaluationItem]:
    items = []
    for entry in read_pie_bench(folder):
        item = image_item(entry.name, entry.image, entry.source, entry.target, max_side)
        if item.size != tuple(entry.mask.shape[-2:]):
            raise UserError(
                f"{entry.image}: is {item.size[1]} x {item.size[0]}; masks of PIE-Bench are 512 x 512 (max_side=null)"
            )

        def load(item: EvaluationItem = item, mask: Tensor = entry.mask) -> ItemImages:
            return replace(item.load(), mask=mask)

        items.append(replace(item, identity=[item.identity, entry.runs], load=load, has_mask=True))
    return items


def image_item(
    name: str,
    path: Path,
    source: str,
    target: str,
    max_side: int | None,
    mask: Path | None = None,
    truth: Path | None = None,
) -> EvaluationItem:
    def read(file: Path) -> Tensor:
        return rounded(read_input_image(file, max_side).image)  # to 8 bits, as results on disk are

    def load() -> ItemImages:
        image = read(path)
        height, width = image.shape[-2:]
        exact = read(truth) if truth else None
        if exact is not None and exact.shape != image.shape:
            raise UserError(f"{truth}: is {exact.shape[-1]} x {exact.shape[-2]}, and {path} is {width} x {height}")
        where = read_mask(mask, (height, width))[None].round() if mask else None
        return ItemImages(image, where, exact)

    height, width = load().image.shape[-2:]
    files = [file and file_digest(file) for file in (path, mask, truth)]
    return EvaluationItem(
        name,
        source,
        target,
        (height, width),
        load,
        identity=[files, max_side, source, target],
        has_mask=mask is not None,
        has_truth=truth is not None,
    )
