"""Editors side by side on the same pictures."""

import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from dds_train import build
from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import score_edit
from dds_train.critters.world import Critter
from dds_train.diffusion.device import find_device
from dds_train.errors import UserError
from dds_train.evaluation.items import draw_critters
from dds_train.evaluation.metrics.clip import Clip
from dds_train.evaluation.metrics.pixels import mse
from dds_train.images.files import save_image
from dds_train.images.find import find_inputs
from dds_train.images.grids import labelled_grid
from dds_train.images.input_image import check_readable, read_input_image
from dds_train.methods.registry import METHODS, Method, MethodContext, instructions
from dds_train.translator import read_config

UNUSED = ("data", "translator", "trainer", "logger", "optimizer", "scheduler", "loss")
Score = Callable[[list[Tensor]], dict[str, float]]


@dataclass(frozen=True)
class Pictures:
    """The pictures to edit, what is known of the right results, and how results are scored."""

    names: list[str]
    batches: list[Tensor]  # each [B,3,H,W] in [-1,1], pictures of one size
    truths: list[Tensor] | None  # in the same batches
    score: Score


def run(cfg: DictConfig) -> None:
    chosen = choose(cfg)
    for name, fields in chosen.items():
        check_method(name, fields, [cfg.target])
    setting = MethodContext(build.build_checkpoint(cfg.teacher, find_device(cfg.device)), [cfg.target], cfg.seed)
    pictures = own_pictures(cfg) if cfg.image is not None else critters(cfg)
    methods = {name: build_method(name, fields, setting) for name, fields in chosen.items()}
    output_dir = Path(cfg.output_dir)
    build.save_config(cfg, output_dir, unused=UNUSED)
    scores: dict[str, dict[str, float]] = {}
    columns = {"input": pictures.batches, **({"truth": pictures.truths} if pictures.truths else {})}
    for name, edit in tqdm(methods.items(), desc="compare", unit="method"):
        # Of the truth, where it is known: the best that any editor behind this codec could do.
        inputs = pictures.truths if pictures.truths and chosen[name]["kind"] == "vae_reconstruction" else pictures.batches
        began = time.perf_counter()
        columns[name] = [edit(batch, [cfg.source] * len(batch), [cfg.target] * len(batch)) for batch in inputs]
        seconds = (time.perf_counter() - began) / sum(map(len, inputs))
        scores[name] = {**pictures.score(columns[name]), "s / image": seconds}
    table = as_table(scores)
    (output_dir / "table.md").write_text(table)
    (output_dir / "scores.json").write_text(json.dumps(scores, indent=2))
    shown = {name: [one for batch in batches for one in batch][: cfg.rows] for name, batches in columns.items()}
    save_image(labelled_grid(shown, pictures.names), output_dir / "picture.png")
    count = sum(map(len, pictures.batches))
    print(f'{count} pictures, "{cfg.source}" -> "{cfg.target}"\n\n{table}\npicture  {output_dir / "picture.png"}', flush=True)


def choose(cfg: DictConfig, always: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """name -> all fields of its configuration: the editors wanted, those of `always` first, and the translators."""
    configured: dict[str, dict[str, Any]] = OmegaConf.to_container(cfg.method, resolve=True)  # type: ignore[assignment]
    known = {**(always or {}), **configured}
    wanted = [*(always or {}), *(known if cfg.methods is None else cfg.methods)]
    for name in wanted:
        if name not in known:
            raise UserError(f"methods=[{','.join(wanted)}]: no editor {name}; there are {', '.join(known)}")
    usual = {
        "kind": "optimize",
        "loss": "dds",
        **{key: cfg[key] for key in ("steps", "lr", "guidance")},
        "t_range": list(cfg.t_range),
    }
    methods = {name: {**(usual if known[name].get("kind", "optimize") == "optimize" else {}), **known[name]} for name in wanted}
    for ckpt, run_name in run_names([cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt or []).items():
        for strength in cfg.strengths:
            name = f"translator {run_name}" + ("" if list(cfg.strengths) == [1] else f", strength {strength:g}")
            methods[name] = {"kind": "translator", "ckpt": ckpt, "strength": strength}
    for name, fields in methods.items():
        if fields["kind"] not in METHODS:
            raise UserError(f"method.{name}.kind={fields['kind']}: there are {', '.join(METHODS)}")
    return methods


def run_names(ckpts: Sequence[str]) -> dict[str, str]:
    """What to call the runs that translators are from: by their folders, with as much of the path as tells them apart."""
    paths = {ckpt: Path(ckpt).resolve() for ckpt in ckpts}
    folders = {ckpt: path.parents[1] if path.parent.name == "checkpoints" else path.parent for ckpt, path in paths.items()}
    for depth in range(1, max((len(folder.parts) for folder in folders.values()), default=0) + 1):
        names = {ckpt: "/".join(folder.parts[-depth:]) for ckpt, folder in folders.items()}
        if len(set(names.values())) == len(names):
            return names
    return {ckpt: ckpt for ckpt in ckpts}


def check_method(name: str, fields: dict[str, Any], targets: Sequence[str]) -> None:
    """What can be said of an editor's configuration before anything is loaded.

    Raises:
        UserError: naming what it does not know.
    """
    known = [key for key in inspect.signature(METHODS[fields["kind"]]).parameters if key != "setting"]
    known += ["options"] if fields["kind"] == "optimize" else []
    unknown = [key for key in fields if key not in ("kind", *known)]
    if unknown:
        raise UserError(
            f"method.{name}.{unknown[0]}: an editor of kind {fields['kind']} has {', '.join(known) or 'no options'}"
        )
    if fields["kind"] == "optimize":
        build.load_loss(fields["loss"], fields.get("options", {}))
    if fields["kind"] == "translator":
        try:
            instructions(read_config(Path(fields["ckpt"])), targets)
        except ValueError as error:
            raise UserError(f"method.{name}: {error}") from error


def build_method(name: str, fields: dict[str, Any], setting: MethodContext) -> Method:
    make, given = METHODS[fields["kind"]], {key: value for key, value in fields.items() if key != "kind"}
    if fields["kind"] == "optimize":
        loss = build.load_loss(critters.source.pop("loss"), critters.source.pop("options", {}))
        given = {"negative": loss.get("negative"), **given, "loss": build.build_loss(loss, setting.parts)}
        given["t_range"] = build.build_t_range(given["t_range"], len(setting.parts.teacher().schedule), loss)
    try:
        return make(setting, **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"method.{name}: {error}") from error


# ---------------------------------------------------------------- what is edited, and what counts


def critters(cfg: DictConfig) -> Pictures:
    sources, targets, change = draw_critters(cfg)

    def batches(some: list[Critter]) -> list[Tensor]:
        return list(torch.stack([to_tensor(one) for one in some]).split(cfg.batch_size))

    def score(outputs: list[Tensor]) -> dict[str, float]:
        return asdict(score_edit(torch.cat(outputs), sources, change))

    names = [full_caption(source).removeprefix("a photo of ") for source in sources]
    return Pictures(names, batches(sources), batches(targets), score)


def own_pictures(cfg: DictConfig) -> Pictures:
    """The user's pictures, of which nobody knows the truth: how much is kept and, with a CLIP model, how well the words fit."""
    found = find_inputs(cfg.image, cfg.output_dir)
    check_readable(found)
    inputs = [read_input_image(path, cfg.max_side).image for _, path in found]
    clip = Clip(cfg.clip.model) if cfg.clip.model else None

    def score(outputs: list[Tensor]) -> dict[str, float]:
        errors = [mse(a, b).item() for a, b in zip(outputs, inputs, strict=True)]
        mean = sum(errors) / len(errors)
        scores = {"PSNR to input": -10 * math.log10(mean) if mean else math.inf}
        if clip:
            for key, words in (("CLIP target", cfg.target), ("CLIP source", cfg.source)):
                alike = [clip.similarity(output, [words])[0] for output in outputs]
                scores[key] = sum(alike) / len(alike)
        return scores

    return Pictures([name for name, _ in found], inputs, None, score)


def as_table(scores: dict[str, dict[str, float]]) -> str:
    """editor -> score -> number, as a table in Markdown."""
    names = list(next(iter(scores.values())))
    rows = [["method", *(name.replace("_", " ").replace("psnr", "PSNR") for name in names)], ["---"] * (len(names) + 1)]
    digits = {"background_psnr": 1, "PSNR to input": 1, "gap_closed": 3, "s / image": 3}
    for method, numbers in scores.items():
        rows.append([method, *(f"{round(numbers[name], 6) + 0.0:.{digits.get(name, 2)}f}" for name in names)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
