"""Measure editors on many pictures.

First all editing, one editor after the other, then all scoring, of the written files: what is judged is what a user would get,
a stopped run goes on, and a score whose network was not there comes later without editing again.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from dds_train import build
from dds_train.commands.compare import build_method, check_method, choose
from dds_train.diffusion.device import find_device
from dds_train.errors import UserError
from dds_train.evaluation.cost import cost
from dds_train.evaluation.items import LazyItem, find_entries
from dds_train.evaluation.metrics.distribution import Inception, frechet_distance, kernel_distance
from dds_train.evaluation.metrics.diversity import spread
from dds_train.evaluation.metrics.scores import EvaluationItem, Mean, Score, build_scores, means
from dds_train.evaluation.recommendation import SECONDS, Summary
from dds_train.evaluation.report import GalleryRow, Report, write_report
from dds_train.evaluation.results import Results
from dds_train.images.files import read_image, save_image
from dds_train.images.find import find_inputs
from dds_train.images.streaming import batches, within_memory
from dds_train.methods.registry import Method, MethodContext
from dds_train.runs.digest import file_digest

UNUSED = ("data", "translator", "trainer", "logger", "optimizer", "scheduler", "loss")
# What doing nothing gets, and what the codec costs: without them no number means much.
ALWAYS = {"identity": {"kind": "identity"}, "vae_reconstruction": {"kind": "vae_reconstruction"}}
MEMORY, DIVERGED = "peak MiB", "diverged"


def run(cfg: DictConfig) -> None:
    chosen = with_fewer_steps(choose(cfg, ALWAYS), cfg.step_counts)
    device = find_device(cfg.device)
    entries = find_entries(cfg)
    for name, fields in chosen.items():
        check_method(name, fields, targets_of(entries))
    wanted = [] if cfg.targets is None else [path for _, path in find_inputs(cfg.targets, cfg.output_dir)]
    if cfg.targets is not None and min(len(wanted), len(entries)) < 2:
        raise UserError(f"targets={cfg.targets}: FID and KID need at least two pictures on each side")
    results = Results(Path(cfg.output_dir), settings(cfg, chosen, entries))
    build.save_config(cfg, results.folder, unused=UNUSED)
    edit_all(cfg, chosen, entries, results, device)
    left_out = score_all(cfg, list(chosen), entries, results, device)
    summary = {name: means([results.of(name, entry.name) for entry in entries]) for name in chosen}
    more, also_left_out = scores_of_sets(cfg, list(chosen), entries, wanted, results, device)
    summary = {name: {**scores, **more[name]} for name, scores in summary.items()}
    left_out += also_left_out
    (results.folder / "metrics.json").write_text(json.dumps(plain({"methods": summary, "left out": left_out}), indent=2))
    results.write_csv(list(chosen), [entry.name for entry in entries])
    write_report(results.folder, report(cfg, chosen, entries, results, summary, left_out))
    print(f"{len(entries)} pictures, {len(chosen)} editors: {results.folder / 'report.html'}", flush=True)


def with_fewer_steps(chosen: Mapping[str, dict[str, Any]], counts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Editors that descend, also after so many steps."""
    methods: dict[str, dict[str, Any]] = {}
    for name, fields in chosen.items():
        if fields["kind"] == "optimize":
            fewer = [count for count in sorted(counts) if count < fields["steps"]]
            methods |= {f"{name}, {count} steps": {**fields, "steps": count} for count in fewer}
        methods[name] = fields
    return methods


def settings(cfg: DictConfig, chosen: Mapping[str, dict[str, Any]], entries: Sequence[LazyItem]) -> dict[str, dict[str, Any]]:
    """What results depend on; see `Results`."""
    teacher = {key: cfg.teacher[key] for key in ("path", "dtype")}
    methods = {}
    for name, fields in chosen.items():
        ckpt = Path(fields["ckpt"]) if "ckpt" in fields else None
        weights = None if ckpt is None else file_digest(ckpt / "translator.safetensors" if ckpt.is_dir() else ckpt)
        methods[name] = {**fields, "weights": weights}
    pictures = {entry.name: entry.identity for entry in entries}
    return {"setting": {"teacher": teacher, "seed": cfg.seed}, "method": methods, "picture": pictures}


# ---------------------------------------------------------------- edit


def edit_all(
    cfg: DictConfig, chosen: Mapping[str, dict[str, Any]], entries: Sequence[LazyItem], results: Results, device: str
) -> None:
    with tqdm(total=len(entries) * len(chosen), desc="edit", unit="edit") as bar:
        for name, fields in chosen.items():
            todo = [entry for entry in entries if SECONDS not in results.of(name, entry.name)]
            bar.update(len(entries) - len(todo))
            if todo:
                edit_with(cfg, name, fields, todo, results, device, bar)


def edit_with(
    cfg: DictConfig, name: str, fields: dict[str, Any], entries: Sequence[LazyItem], results: Results, device: str, bar: Any
) -> None:
    # Parts of its own, given back when it is done: its memory is its own.
    method = build_method(
        name, fields, MethodContext(build.build_checkpoint(cfg.teacher, device), targets_of(entries), cfg.seed)
    )
    # Through the codec goes the truth, where it is known: the best that any editor behind this codec could do.
    of_truth = fields["kind"] == "vae_reconstruction"
    for batch in batches(entries, attrgetter("size"), cfg.batch_size):
        cases = [entry.load() for entry in batch]
        edit = partial(within_memory, partial(edit_cases, method, of_truth), cases, "give max_side=")
        edited, seconds, memory = cost(edit, device)
        for case, output in zip(cases, edited, strict=True):
            lost = not torch.isfinite(output).all()
            save_image(torch.zeros_like(output) if lost else output, results.picture(name, case.name))
            results.start(name, case.name, {SECONDS: seconds / len(cases), MEMORY: memory, **({DIVERGED: 1.0} if lost else {})})
        bar.update(len(batch))


def edit_cases(method: Method, of_truth: bool, cases: Sequence[EvaluationItem]) -> Iterable[Tensor]:
    inputs = torch.cat([case.truth if of_truth and case.truth is not None else case.image for case in cases])
    return method(inputs, [case.source for case in cases], [case.target for case in cases])


def targets_of(entries: Sequence[LazyItem]) -> list[str]:
    return list(dict.fromkeys(entry.target for entry in entries))


# ---------------------------------------------------------------- score


def score_all(cfg: DictConfig, methods: Sequence[str], entries: Sequence[LazyItem], results: Results, device: str) -> list[str]:
    """Every score that is not there yet; a line for each that cannot be had."""
    scores = build_scores(cfg.lpips.nets, cfg.clip.model, cfg.structure.model, device, cfg.lpips.hub_dir)
    results.claim({"network": scores.networks})
    for line in scores.left_out:
        print(f"left out: {line}", flush=True)
    with tqdm(total=len(entries) * len(methods), desc="score", unit="edit") as bar:
        for batch in batches(entries, attrgetter("size"), cfg.batch_size):
            cases = [entry.load() for entry in batch]
            for method in methods:
                add_scores(scores.found, method, cases, results)
                bar.update(len(batch))
    return scores.left_out


def add_scores(scores: Sequence[Score], method: str, cases: Sequence[EvaluationItem], results: Results) -> None:
    """Those that cases lack; NaN for results that are no picture."""

    def lacking(score: Score) -> list[int]:
        found = [(score.applies(case) and not set(score.names) <= set(results.of(method, case.name))) for case in cases]
        return [number for number, lacks in enumerate(found) if lacks]

    todo = [(score, rows) for score in scores if (rows := lacking(score))]
    if not todo:
        return
    outputs = torch.stack([read_image(results.picture(method, case.name)) for case in cases])
    for score, rows in todo:
        found = score.measure([cases[row] for row in rows], outputs[rows])
        for number, row in enumerate(rows):
            lost = DIVERGED in results.of(method, cases[row].name)
            values = {name: math.nan if lost else values[number].item() for name, values in found.items()}
            results.add(method, cases[row].name, values)


def scores_of_sets(
    cfg: DictConfig, methods: Sequence[str], entries: Sequence[LazyItem], wanted: Sequence[Path], results: Results, device: str
) -> tuple[dict[str, dict[str, Mean]], list[str]]:
    """What is a property of all results of an editor together, and a line for what cannot be had. `wanted`: pictures of the
    target, for FID and KID."""
    found: dict[str, dict[str, Mean]] = {method: {} for method in methods}

    def pictures(method: str) -> Iterable[Tensor]:
        return (read_image(results.picture(method, entry.name)) for entry in entries)

    def keep(method: str, name: str, value: float) -> None:
        found[method][name] = {"mean": value, "count": len(entries), "nan": 0}

    if len({entry.size for entry in entries}) == 1:
        before = spread(entry.load().image[0] for entry in entries).item()
        for method in methods if before > 0 else ():
            keep(method, "diversity", spread(pictures(method)).item() / before)
    if not wanted:
        return found, []
    try:
        inception = Inception(cfg.fid, device)
    except UserError as error:
        print(f"left out: {error}", flush=True)
        return found, [str(error)]
    features = inception.features(read_image(path) for path in wanted)
    for method in tqdm(methods, desc="FID and KID", unit="method"):
        own = inception.features(pictures(method))
        keep(method, "FID", frechet_distance(features, own))
        keep(method, "KID", kernel_distance(features, own, cfg.seed))
    return found, []


# ---------------------------------------------------------------- say


def report(
    cfg: DictConfig,
    chosen: Mapping[str, dict[str, Any]],
    entries: Sequence[LazyItem],
    results: Results,
    summary: Summary,
    left_out: Sequence[str],
) -> Report:
    def shown(entry: LazyItem) -> GalleryRow:
        def load() -> tuple[Tensor, Tensor | None]:
            case = entry.load()
            return case.image[0], None if case.truth is None else case.truth[0]

        words = "" if one_wish else f"{entry.source} → {entry.target}"
        return GalleryRow(entry.name, words, load, {name: results.of(name, entry.name) for name in chosen})

    one_wish = len({(entry.source, entry.target) for entry in entries}) == 1
    what = f"{len(entries)} {'critters' if cfg.image is None else f'pictures of {cfg.image}'}, teacher {cfg.teacher.path}"
    return Report(
        title=f"{entries[0].source} → {entries[0].target}" if one_wish else f"Edits of {cfg.image}",
        what=what,
        summary=summary,
        curves=curves(chosen),
        rows=[shown(entry) for entry in entries],
        picture=results.picture,
        left_out=left_out,
    )


def curves(chosen: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """Editors that differ in strength or steps alone, in that order."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for name, fields in chosen.items():
        rest = json.dumps({key: value for key, value in fields.items() if key not in ("strength", "steps")})
        groups.setdefault(rest, []).append((fields.get("strength", 0) + fields.get("steps", 0), name))
    return [[name for _, name in sorted(group)] for group in groups.values() if len(group) > 1]


def plain(value: Any) -> Any:
    """For JSON, which has no infinity and no NaN: "inf" and null."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
