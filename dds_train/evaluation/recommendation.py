"""Which editor to use, and why: the one nearest to the true edits where these are known, else the best balance between making
the change and keeping the rest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dds_train.evaluation.metrics.scores import Mean, meaning

Summary = Mapping[str, Mapping[str, Mean]]  # editor -> score -> its mean
PerImage = Mapping[str, Sequence[Mapping[str, float]]]  # editor -> the scores of each picture, in one order for all

REFERENCES = ("identity", "vae_reconstruction")  # what to compare with; no editors
GAP_CLOSED = "gap closed"
SECONDS = "s / image"
CHANGED = (GAP_CLOSED, "CLIP direction")  # whether the edit was made, best measure first
KEPT = ("background PSNR", "LPIPS squeeze outside", "LPIPS alex outside", "SSIM outside", "LPIPS squeeze", "LPIPS alex", "SSIM")


@dataclass(frozen=True)
class Recommendation:
    best: str | None  # None if nothing measures whether edits were made
    why: str
    changed: str | None  # the score that says whether an edit was made
    kept: str | None  # the score that says whether the rest was kept
    front: tuple[str, ...]  # editors that no other beats at both, and that make at least half of the best one's change


def recommend(summary: Summary, per_image: PerImage) -> Recommendation:
    methods = [name for name in summary if name not in REFERENCES]

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if methods and all(finite(summary, method, name) for method in methods)), None)

    changed, kept = first(CHANGED), first(KEPT)
    if changed is None:
        return Recommendation(
            None, "Nothing here measures the change itself; give a CLIP model to rank editors.", None, kept, ()
        )
    most = max(methods, key=lambda method: value(summary, method, changed))
    enough = [one for one in methods if value(summary, one, changed) >= value(summary, most, changed) / 2]
    front = tuple(one for one in enough if kept and not any(beats(summary, other, one, changed, kept) for other in methods))
    if changed == GAP_CLOSED or kept is None:
        best, *others = sorted(methods, key=lambda method: -value(summary, method, changed))
        why = f"It makes the best edits: {changed} {value(summary, best, changed):.3f}."
        if others:
            why += " " + against(per_image, best, others[0], changed)
        return Recommendation(best, why + fastest_comparable(summary, best, changed), changed, kept, front)

    def balance(method: str) -> float:
        share = max(0.0, value(summary, method, changed)) / max(1e-9, value(summary, most, changed))
        same = value(summary, method, kept) if meaning(kept).better > 0 else 1 - value(summary, method, kept)
        return 2 * share * same / (share + same) if share > 0 and same > 0 else 0.0

    best = max(methods, key=balance)
    similar = kept if meaning(kept).better > 0 else f"1 - {kept}"
    why = (
        f"It balances best: {changed} {value(summary, best, changed):.3f} (the most is {value(summary, most, changed):.3f}, by "
        f"{most}) and {kept} {value(summary, best, kept):.3f}. Balance is {balance(best):.3f}: the harmonic mean of {changed}, "
        f"as a share of the most, and {similar}."
    )
    return Recommendation(best, why + fastest_comparable(summary, best, changed), changed, kept, front)


def fastest_comparable(summary: Summary, best: str, changed: str) -> str:
    """The fastest of the editors that come near the best one, if it is much faster."""
    near = [e for e, scores in summary.items() if e not in REFERENCES and SECONDS in scores]
    near = [e for e in near if value(summary, e, changed) >= 0.8 * value(summary, best, changed)]
    if best not in near:
        return ""
    fastest = min(near, key=lambda method: value(summary, method, SECONDS))
    times = value(summary, best, SECONDS) / max(1e-9, value(summary, fastest, SECONDS))
    return (
        f" In haste: {fastest}, {times:.0f} times as fast, {changed} {value(summary, fastest, changed):.3f}."
        if times > 2
        else ""
    )


def value(summary: Summary, method: str, score: str) -> float:
    return summary[method][score]["mean"]


def finite(summary: Summary, method: str, score: str) -> bool:
    return score in summary[method] and math.isfinite(value(summary, method, score))


def beats(summary: Summary, one: str, other: str, changed: str, kept: str) -> bool:
    """At both, and at one of them strictly."""
    gains = [meaning(score).better * (value(summary, one, score) - value(summary, other, score)) for score in (changed, kept)]
    return min(gains) >= 0 and max(gains) > 0


def against(per_image: PerImage, best: str, second: str, score: str) -> str:
    """Whether the pictures are enough to tell the first from the second: a paired comparison, picture by picture."""
    pairs = zip(per_image[best], per_image[second], strict=True)
    gains = [a[score] - b[score] for a, b in pairs if not math.isnan(a.get(score, math.nan) - b.get(score, math.nan))]
    if len(gains) < 2:
        return f"Next is {second}."
    mean = math.fsum(gains) / len(gains)
    error = math.sqrt(math.fsum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1) / len(gains))
    told = "" if mean > 2 * error else "; so few pictures do not tell the two apart"
    return f"Next is {second}, behind by {mean:.3f} ± {2 * error:.3f} (95 %, paired over {len(gains)} pictures){told}."
