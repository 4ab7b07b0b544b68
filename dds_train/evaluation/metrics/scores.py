"""The scores of an edit, what each says, and their means over many."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dds_train.critters.scores import score_edit
from dds_train.critters.world import Critter
from dds_train.errors import UserError
from dds_train.evaluation.metrics.clip import Clip
from dds_train.evaluation.metrics.perceptual import Lpips, Structure
from dds_train.evaluation.metrics.pixels import mse, outside, psnr, ssim


@dataclass(frozen=True)
class EvaluationItem:
    """One picture to edit, and what is known of it."""

    name: str
    image: Tensor  # [1,3,H,W] in [-1,1]
    source: str
    target: str
    mask: Tensor | None = None  # [1,1,H,W], 1 where the edit belongs; for scores alone
    truth: Tensor | None = None  # [1,3,H,W]
    critter: Critter | None = None
    change: Mapping[str, Any] | None = None  # of the critter


@dataclass(frozen=True)
class Score:
    """Some scores that are measured together, of cases of one size and results [B,3,H,W]: each becomes [B]."""

    names: tuple[str, ...]
    measure: Callable[[Sequence[EvaluationItem], Tensor], Mapping[str, Tensor]]
    applies: Callable[[EvaluationItem], bool] = lambda case: True


@dataclass(frozen=True)
class MetricInfo:
    better: int  # 1: more is better, -1: less is, 0: neither
    text: str


MEANINGS = {
    "gap closed": MetricInfo(1, "1 - mse(result, truth) / mse(input, truth): 0 for doing nothing, 1 for the true edit"),
    "right": MetricInfo(1, "share of results that read as what was wanted, by the nearest exact render"),
    "fur": MetricInfo(1, "share of results with the right fur"),
    "backdrop": MetricInfo(1, "share of results with the right backdrop"),
    "accessories": MetricInfo(1, "share of results with glasses and hat as they should be"),
    "background PSNR": MetricInfo(1, "in dB, where no edit belongs; infinite if nothing changed there (compare pools errors)"),
    "PSNR to truth": MetricInfo(1, "in dB, against the true edit"),
    "PSNR": MetricInfo(1, "in dB, against the input"),
    "SSIM": MetricInfo(1, "structural similarity to the input, at most 1"),
    "LPIPS": MetricInfo(-1, "perceptual distance from the input, by the network named; 0 if equal"),
    "structure": MetricInfo(-1, "squared difference of the self-similarities of a ViT's keys (PIE-Bench prints it times 1000)"),
    "MSE": MetricInfo(-1, "squared difference from the input, of pixels in [0, 1]"),
    "CLIP target": MetricInfo(1, "cosine of the result with the target sentence (PIE-Bench prints it times 100)"),
    "CLIP direction": MetricInfo(1, "cosine between how the picture moved and how the sentence did"),
    "CLIP target - source": MetricInfo(1, "how much nearer to the target's sentence than to the source's"),
    "FID": MetricInfo(
        -1, "clean-FID: Frechet distance of all results from the pictures of the target; wants thousands of both"
    ),
    "KID": MetricInfo(-1, "kernel distance of the same features, unbiased for few pictures"),
    "diversity": MetricInfo(0, "spread of the results over spread of the inputs; near 0 all results are alike"),
    "diverged": MetricInfo(0, "results that left the finite numbers; their scores are NaN"),
    "s / image": MetricInfo(-1, "seconds for each picture, loading aside"),
    "peak MiB": MetricInfo(-1, "memory in use at most while editing, with all that was loaded for it"),
}


def meaning(name: str) -> MetricInfo:
    """ "LPIPS alex outside" is that of "LPIPS": outside or inside of the mask."""
    return MEANINGS[max((known for known in MEANINGS if name.startswith(known)), key=len)]


# ---------------------------------------------------------------- each score


def has_mask(case: EvaluationItem) -> bool:
    return case.mask is not None


def masks_of(cases: Sequence[EvaluationItem]) -> Tensor:
    return torch.cat([case.mask for case in cases if case.mask is not None])


def inputs_of(cases: Sequence[EvaluationItem]) -> Tensor:
    return torch.cat([case.image for case in cases])


def everywhere(name: str, distance: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """Between result and input."""
    return Score((name,), lambda cases, outputs: {name: distance(outputs, inputs_of(cases))})


def background(name: str, distance: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """The same outside the masks; NaN where the mask is everywhere."""

    def measure(cases: Sequence[EvaluationItem], outputs: Tensor) -> dict[str, Tensor]:
        masks = masks_of(cases)
        found = distance(outside(outputs, masks), outside(inputs_of(cases), masks))
        return {f"{name} outside": torch.where((masks > 0.5).all(dim=(1, 2, 3)), torch.nan, found)}

    return Score((f"{name} outside",), measure, has_mask)


def critter_scores() -> Score:
    names = {
        "gap_closed": "gap closed",
        "species": "right",
        "fur": "fur",
        "backdrop": "backdrop",
        "accessories": "accessories",
        "background_psnr": "background PSNR",
    }

    def measure(cases: Sequence[EvaluationItem], outputs: Tensor) -> dict[str, Tensor]:
        rows = []
        for case, output in zip(cases, outputs.split(1), strict=True):
            assert case.critter is not None
            assert case.change is not None
            rows.append(asdict(score_edit(output, [case.critter], case.change)))
        return {name: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key, name in names.items()}

    return Score(tuple(names.values()), measure, lambda case: case.critter is not None)


def truth_scores() -> Score:
    """Where the true edit is a picture, and not a critter."""

    def measure(cases: Sequence[EvaluationItem], outputs: Tensor) -> dict[str, Tensor]:
        truths = torch.cat([case.truth for case in cases if case.truth is not None])
        gap = mse(inputs_of(cases), truths)
        closed = torch.where(gap > 0, 1 - mse(outputs, truths) / gap, torch.nan)
        return {"gap closed": closed, "PSNR to truth": psnr(outputs, truths)}

    return Score(("gap closed", "PSNR to truth"), measure, lambda case: case.truth is not None and case.critter is None)


def clip_scores(clip: Clip) -> list[Score]:
    def measure(cases: Sequence[EvaluationItem], outputs: Tensor) -> dict[str, Tensor]:
        sources, targets = [case.source for case in cases], [case.target for case in cases]
        after = clip.images(outputs)
        target = (after * clip.texts(targets)).sum(-1)
        return {
            "CLIP target": target,
            "CLIP direction": clip.direction(inputs_of(cases), outputs, sources, targets),
            "CLIP target - source": target - (after * clip.texts(sources)).sum(-1),
        }

    def inside(cases: Sequence[EvaluationItem], outputs: Tensor) -> dict[str, Tensor]:
        edited = outside(outputs, 1 - masks_of(cases))
        return {"CLIP target inside": torch.tensor(clip.similarity(edited, [case.target for case in cases]))}

    return [
        Score(("CLIP target", "CLIP direction", "CLIP target - source"), measure),
        Score(("CLIP target inside",), inside, has_mask),
    ]


@dataclass(frozen=True)
class Scores:
    found: list[Score]
    networks: dict[str, str]  # what was loaded for them: scores by other networks are other scores
    left_out: list[str]  # a line for each that cannot be had


def build_scores(
    lpips: Sequence[str], clip: str | None, structure: str | None, device: str, hub_dir: str | None = None
) -> Scores:
    """The scores that can be had.

    Args:
        lpips: backbones: squeeze, alex, vgg.
        clip, structure: folders or hub ids; None leaves the score out without a word.
        hub_dir: torch hub's folder, in which LPIPS looks for its backbones; by default ~/.cache/torch/hub.
    """
    scores = [critter_scores(), truth_scores(), everywhere("PSNR", psnr), everywhere("SSIM", ssim)]
    scores += [background(name, distance) for name, distance in (("PSNR", psnr), ("SSIM", ssim), ("MSE", mse))]
    networks: dict[str, str] = {}
    left_out: list[str] = []

    def attempt(make: Callable[[], list[Score]], **network: str) -> None:
        try:
            scores.extend(make())
            networks.update(network)
        except UserError as error:
            left_out.append(str(error))

    def lpips_scores(net: str) -> list[Score]:
        metric = Lpips(net, device, hub_dir)
        return [everywhere(f"LPIPS {net}", metric), background(f"LPIPS {net}", metric)]

    for net in lpips:
        attempt(lambda net=net: lpips_scores(net))  # type: ignore[misc]
    if structure is not None:
        attempt(lambda: [everywhere("structure", Structure(structure, device))], structure=structure)
    if clip is not None:
        attempt(lambda: clip_scores(Clip(clip, device)), CLIP=clip)
    return Scores(scores, networks, left_out)


# ---------------------------------------------------------------- means

Mean = Mapping[str, float]  # {"mean", "error", "count", "nan"}


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """Of each score its mean, the standard error of that, and how many values are numbers, and how many NaN. NaNs are left out
    of the mean; infinities stay in, and leave no error."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    summary: dict[str, Mean] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        good = [value for value in values if not math.isnan(value)]
        finite = good and not any(map(math.isinf, good))
        mean = math.fsum(good) / len(good) if finite else sum(good) if good else math.nan
        error = math.nan
        if finite and len(good) > 1:
            error = math.sqrt(math.fsum((value - mean) ** 2 for value in good) / (len(good) - 1) / len(good))
        summary[name] = {"mean": mean, "error": error, "count": len(good), "nan": len(values) - len(good)}
    return summary
