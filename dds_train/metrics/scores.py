"""The scores of one edit, and their means over many."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dds_train.critters.world import Critter
from dds_train.errors import UserError
from dds_train.metrics.clip import Clip
from dds_train.metrics.critters import score_edit
from dds_train.metrics.perceptual import Lpips, Structure
from dds_train.metrics.pixels import mse, outside, psnr, ssim


@dataclass(frozen=True)
class Case:
    """One picture to edit, and what is known of it."""

    name: str
    image: Tensor  # [1,3,H,W] in [-1,1]
    source: str
    target: str
    mask: Tensor | None = None  # [1,1,H,W], 1 where the edit belongs; for scores alone
    truth: Tensor | None = None  # [1,3,H,W]
    critter: Critter | None = None
    change: Mapping[str, Any] | None = None  # of the critter


Score = Callable[[Case, Tensor], dict[str, float]]  # of an output [1,3,H,W]; what does not apply is left out
# Whether more is better; what is not here is neither.
BETTER = {
    "gap closed": 1, "right": 1, "fur": 1, "backdrop": 1, "accessories": 1, "background PSNR": 1, "PSNR": 1, "SSIM": 1,
    "PSNR outside": 1, "SSIM outside": 1, "MSE outside": -1, "LPIPS squeeze": -1, "LPIPS alex": -1, "structure": -1,
    "CLIP target": 1, "CLIP direction": 1, "CLIP target - source": 1, "s / image": -1,
}  # fmt: skip


def pixel_scores(case: Case, output: Tensor) -> dict[str, float]:
    found = {"PSNR": psnr(output, case.image).item(), "SSIM": ssim(output, case.image).item()}
    if case.mask is not None and (case.mask > 0.5).all():  # there is no outside
        return {**found, "PSNR outside": math.nan, "SSIM outside": math.nan, "MSE outside": math.nan}
    if case.mask is not None:
        a, b = outside(output, case.mask), outside(case.image, case.mask)
        found |= {"PSNR outside": psnr(a, b).item(), "SSIM outside": ssim(a, b).item(), "MSE outside": mse(a, b).item()}
    return found


def critter_scores(case: Case, output: Tensor) -> dict[str, float]:
    if case.critter is None or case.change is None:
        return {}
    found = asdict(score_edit(output, [case.critter], case.change))
    names = {"species": "right", "gap_closed": "gap closed", "background_psnr": "background PSNR"}
    return {names.get(key, key): value for key, value in found.items()}


def clip_scores(clip: Clip) -> Score:
    def score(case: Case, output: Tensor) -> dict[str, float]:
        target, source = (clip.similarity(output, [text])[0] for text in (case.target, case.source))
        direction = clip.direction(case.image, output, [case.source], [case.target]).item()
        return {"CLIP target": target, "CLIP direction": direction, "CLIP target - source": target - source}

    return score


def build_scores(lpips: Sequence[str], clip: str | None, structure: str | None, device: str) -> tuple[list[Score], list[str]]:
    """The scores that can be had, and a line for each that cannot.

    Args:
        lpips: backbones: squeeze, alex, vgg.
        clip, structure: folders or hub ids; None leaves the score out without a word.
    """
    scores: list[Score] = [critter_scores, pixel_scores]
    left_out: list[str] = []

    def attempt(make: Callable[[], Score]) -> None:
        try:
            scores.append(make())
        except UserError as error:
            left_out.append(str(error))

    def lpips_score(net: str) -> Score:
        metric = Lpips(net, device)
        return lambda case, output: {f"LPIPS {net}": metric(output, case.image).item()}

    def structure_score(path: str) -> Score:
        metric = Structure(path, device)
        return lambda case, output: {"structure": metric(output, case.image).item()}

    for net in lpips:
        attempt(lambda net=net: lpips_score(net))  # type: ignore[misc]
    if clip is not None:
        attempt(lambda: clip_scores(Clip(clip, device)))
    if structure is not None:
        attempt(lambda: structure_score(structure))
    return scores, left_out


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of each score: {"mean", "count", "nan"}. NaNs are counted and left out of the mean; infinities stay in."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    summary = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        good = [value for value in values if not math.isnan(value)]
        mean = math.fsum(good) / len(good) if good and not any(map(math.isinf, good)) else (math.inf if good else math.nan)
        summary[name] = {"mean": mean, "count": len(good), "nan": len(values) - len(good)}
    return summary
