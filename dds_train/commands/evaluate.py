"""Measure editors on many pictures."""

import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from dds_train import build
from dds_train.commands.compare import build_editor, choose, draw_critters
from dds_train.commands.inputs import end_last_line, find_pictures, read_picture
from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import to_tensor
from dds_train.data.images import read_image, read_mask, save_image
from dds_train.data.manifest import is_manifest, read_manifest
from dds_train.data.pie_bench import is_pie_bench, read_pie_bench
from dds_train.editing.editors import Wish
from dds_train.errors import UserError
from dds_train.frozen.device import find_device
from dds_train.metrics.diversity import diversity
from dds_train.metrics.report import Shown, write_report
from dds_train.metrics.scores import Case, build_scores, means

UNUSED = ("data", "translator", "trainer", "logger", "optimizer", "scheduler", "loss")
ALWAYS = ("nothing", "codec")  # what doing nothing gets, and what the codec costs: without them no number means much


def run(cfg: DictConfig) -> None:
    chosen = choose(cfg, ALWAYS)
    device = find_device(cfg.device)
    parts = build.build_pretrained(cfg.teacher, device)
    cases = critter_cases(cfg) if cfg.image is None else picture_cases(cfg)
    scores, left_out = build_scores(cfg.lpips, cfg.clip.model, cfg.structure.model, device)
    for line in left_out:
        print(f"left out: {line}", flush=True)
    output_dir = Path(cfg.output_dir)
    table = Table(output_dir, settings(cfg))
    build.save_config(cfg, output_dir, unused=UNUSED)
    with tqdm(total=len(cases) * len(chosen), desc="evaluate", unit="edit") as bar:
        for name, fields in chosen.items():
            todo = [case for case in cases if not table.has(name, case.name)]
            bar.update(len(cases) - len(todo))
            for wish, batch in batches(todo, cfg, parts):
                edited, seconds = timed(name, fields, cfg, wish, batch)
                for case, output in zip(batch, edited.split(1), strict=True):
                    found = {key: value for score in scores for key, value in score(case, output).items()}
                    save_image(output[0], table.picture(name, case.name))
                    table.add(name, case.name, {**found, "s / image": seconds})
                bar.update(len(batch))
    summary = {name: means(table.rows(name, [case.name for case in cases])) for name in chosen}
    for name, ratio in diversities(cases, list(chosen), table).items():
        summary[name]["diversity"] = {"mean": ratio, "count": len(cases), "nan": 0}
    (output_dir / "metrics.json").write_text(json.dumps(plain({"editors": summary, "left out": left_out}), indent=2))
    shown = [Shown(c.name, c.image, c.truth, {n: table.rows(n, [c.name])[0] for n in chosen}) for c in cases]
    write_report(output_dir, summary, shown, table.picture, left_out, f"{cfg.source} → {cfg.target}")
    print(f"{len(cases)} pictures, {len(chosen)} editors: {output_dir / 'report.html'}", flush=True)


def plain(value: Any) -> Any:
    """For JSON, which has no infinity and no NaN: these become null."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What must not change while one table grows."""
    keys = ("source", "target", "steps", "guidance", "lr", "t_range", "max_side", "seed", "change", "given", "teacher")
    return {key: OmegaConf.to_container(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key] for key in keys}


def critter_cases(cfg: DictConfig) -> list[Case]:
    sources, truths, change = draw_critters(cfg)
    return [
        Case(
            f"{number:04d} {full_caption(source).removeprefix('a photo of ')}",
            to_tensor(source)[None],
            cfg.source,
            cfg.target,
            truth=to_tensor(truth)[None],
            critter=source,
            change=change,
        )
        for number, (source, truth) in enumerate(zip(sources, truths, strict=True))
    ]


def picture_cases(cfg: DictConfig) -> list[Case]:
    """PIE-Bench, or the user's pictures, with the sentences and masks that a list may have for each."""
    if is_pie_bench(cfg.image):
        entries = read_pie_bench(cfg.image)
        return [Case(one.name, read_picture(one.image, None).image, one.source, one.target, one.mask) for one in entries]
    if not is_manifest(cfg.image):
        found = find_pictures(cfg.image, cfg.output_dir)
        return [Case(name, read_picture(path, cfg.max_side).image, cfg.source, cfg.target) for name, path in found]
    cases = []
    for number, entry in enumerate(read_manifest(cfg.image)):
        image = read_picture(entry.image, cfg.max_side).image
        mask = read_mask(entry.mask, (image.shape[-2], image.shape[-1]))[None] if entry.mask not in (None, "auto") else None
        for target in entry.target or (cfg.target,):
            cases.append(Case(f"{number:04d} {entry.image.stem}", image, entry.source or cfg.source, target, mask))
    if len({case.name for case in cases}) < len(cases):
        raise UserError(f"image={cfg.image}: for scores give one target in each line")
    return cases


def batches(cases: Sequence[Case], cfg: DictConfig, parts: Any) -> Iterator[tuple[Wish, list[Case]]]:
    """Cases that can be edited together: of one size, with the same sentences."""

    def kind(case: Case) -> tuple[Any, ...]:
        return (*case.image.shape, case.source, case.target)

    for _, alike in groupby(sorted(cases, key=kind), key=kind):
        some = list(alike)
        wish = Wish(parts, some[0].source, some[0].target, cfg.seed)
        for start in range(0, len(some), cfg.batch_size):
            yield wish, some[start : start + cfg.batch_size]


def timed(name: str, fields: dict[str, Any], cfg: DictConfig, wish: Wish, cases: Sequence[Case]) -> tuple[Tensor, float]:
    """Results [B,3,H,W], and seconds for each of them; what is loaded once does not count."""
    edit = build_editor(name, fields, cfg, wish)
    # Through the codec goes the truth, where it is known: the best that any editor behind this codec could do.
    truth = fields["kind"] == "round_trip" and all(case.truth is not None for case in cases)
    inputs = torch.cat([case.truth if truth and case.truth is not None else case.image for case in cases])
    began = time.perf_counter()
    return edit(inputs), (time.perf_counter() - began) / len(cases)


def diversities(cases: Sequence[Case], editors: Sequence[str], table: "Table") -> dict[str, float]:
    """Of each editor, where all pictures have one size and differ."""
    inputs = [case.image[0] for case in cases]
    if len({image.shape for image in inputs}) != 1 or all(torch.equal(image, inputs[0]) for image in inputs):
        return {}
    before = torch.stack(inputs)
    return {e: diversity(before, torch.stack([read_image(table.picture(e, c.name)) for c in cases])).item() for e in editors}


class Table:
    """per_image.csv: a line for each picture and editor, written as soon as it is known, so that a run can go on.

    Raises:
        UserError: if the folder holds a table that was made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / "per_image.csv"
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.lines: dict[tuple[str, str], dict[str, float]] = {}
        mark = folder / ".settings"
        if mark.exists() and mark.read_text() != digest:
            raise UserError(f"output_dir={folder}: holds results of other settings; take another folder")
        end_last_line(self.path)
        if self.path.exists():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get("value"):  # a line that a kill has cut has none
                        self.lines.setdefault((row["editor"], row["image"]), {})[row["score"]] = float(row["value"])
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(digest)

    def has(self, editor: str, image: str) -> bool:
        # Seconds are written last.
        return "s / image" in self.lines.get((editor, image), {}) and self.picture(editor, image).exists()

    def add(self, editor: str, image: str, scores: Mapping[str, float]) -> None:
        self.lines[editor, image] = dict(scores)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("editor", "image", "score", "value"))
            writer.writerows((editor, image, score, repr(float(value))) for score, value in scores.items())

    def rows(self, editor: str, images: Sequence[str]) -> list[dict[str, float]]:
        return [self.lines[editor, image] for image in images]

    def picture(self, editor: str, image: str) -> Path:
        return self.folder / "pictures" / editor.replace("/", "-") / f"{image}.png"
