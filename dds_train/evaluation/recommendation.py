"""Which method to use, and why: with ground truth, the method that closes most of the gap to it; without, the one with the best
balance between edit and preservation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dds_train.evaluation.configured import REFERENCES
from dds_train.evaluation.metrics.cost import DIVERGED, SECONDS
from dds_train.evaluation.metrics.gap_closed import GAP_CLOSED
from dds_train.evaluation.metrics.metric import Metric
from dds_train.evaluation.summary import Summary

PerImage = Mapping[str, Sequence[Mapping[str, float]]]  # by method, the values of each image, in one order for all


EDIT_METRICS = (GAP_CLOSED.name, "CLIP direction")  # whether the edit was made, best metric first; 0 is doing nothing
KEEP_METRICS = (  # whether the rest was kept, best metric first
    "background PSNR",
    "LPIPS squeeze outside",
    "LPIPS alex outside",
    "SSIM outside",
    "LPIPS squeeze",
    "LPIPS alex",
    "SSIM",
)
ENOUGH = 1e-6  # of gap or direction: less is doing nothing


@dataclass(frozen=True)
class Recommendation:
    best: str | None  # None if no method can be recommended
    reason: str
    edit: str | None = None  # name of the metric of the edit
    keep: str | None = None  # name of the metric of the rest
    front: tuple[str, ...] = ()  # Pareto front of these two, among methods that make at least half of the best one's edit


@dataclass(frozen=True)
class Candidate:
    """A method with a finite value of the metric of the edit."""

    name: str
    edit: float  # the mean, with results that diverged counted as 0: no edit
    keep: float  # NaN if unknown; higher is better
    seconds: float  # NaN if unknown

    def beats(self, other: "Candidate") -> bool:
        """In both respects, and strictly in one."""
        pairs = ((self.edit, other.edit), (self.keep, other.keep))  # compared, not subtracted: both may be infinite
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def recommend(summary: Summary, per_image: PerImage, metrics: Sequence[Metric]) -> Recommendation:
    methods = [name for name in summary if name not in REFERENCES]
    if not methods:
        return Recommendation(None, "No methods to recommend: only references were evaluated.")
    edit = most_available(summary, methods, EDIT_METRICS)
    if edit is None:
        measured = any(name in summary[method] for method in methods for name in EDIT_METRICS)
        reason = "No method has finite values." if measured else "No metric of the edit: give ground truth, or a CLIP model."
        return Recommendation(None, reason + excluded(summary, methods, []))
    ranked = [name for name in methods if math.isfinite(mean(summary, name, edit))]
    # Only metrics in [0,1] can be balanced against the direction.
    keep = most_available(summary, ranked, KEEP_METRICS if edit == GAP_CLOSED.name else KEEP_METRICS[1:])
    directions = {metric.name: metric.direction for metric in metrics}
    candidates = [
        Candidate(
            name,
            mean(summary, name, edit) * (1 - share_diverged(summary, name)),
            mean(summary, name, keep) * directions[keep] if keep else math.nan,
            mean(summary, name, SECONDS.name),
        )
        for name in ranked
    ]
    notes = counted_as_failures(summary, ranked) + excluded(summary, methods, ranked)
    # Ties go to the method that keeps more, then to the faster one.
    candidates.sort(key=lambda one: (-one.edit, -_or(one.keep, -math.inf), _or(one.seconds, math.inf)))
    most = candidates[0]
    if most.edit <= ENOUGH:
        reason = (
            f"No method improves on doing nothing: the best of them, {most.name}, has {edit} {most.edit:.3f} (identity: 0)."
        )
        return Recommendation(None, reason + notes, edit, keep)
    enough = [one for one in candidates if one.edit >= most.edit / 2]
    known = [one for one in enough if not math.isnan(one.keep)]
    front = tuple(one.name for one in known if not any(other.beats(one) for other in known))
    if edit == GAP_CLOSED.name or keep is None:
        best, others = most, candidates[1:]
        reason = f"Highest {edit}: {best.edit:.3f}."
        if others:
            reason += " " + runner_up(per_image, best.name, others[0].name, edit)
    else:
        sign = directions[keep]

        def balance(one: Candidate) -> float:
            share, same = max(0.0, one.edit) / most.edit, one.keep if sign > 0 else 1 + one.keep
            return 2 * share * same / (share + same) if share > 0 and same > 0 else 0.0

        best = max(candidates, key=balance)
        reason = (
            f"Best balance of edit and preservation: {edit} {best.edit:.3f} (highest: {most.edit:.3f}, {most.name}), {keep} "
            f"{best.keep * sign:.3f}. Balance {balance(best):.3f}, the harmonic mean of {edit} relative to the highest and "
            f"{keep if sign > 0 else f'1 - {keep}'}."
        )
    return Recommendation(best.name, reason + fastest_comparable(candidates, best, edit) + notes, edit, keep, front)


def most_available(summary: Summary, methods: Sequence[str], names: Sequence[str]) -> str | None:
    """The metric that most methods have a value of, the first one among equals; None if none has any."""

    def available(name: str) -> int:
        infinite = name not in EDIT_METRICS  # equal images have a PSNR of infinity
        values = [mean(summary, method, name) for method in methods]
        return sum(not math.isnan(value) and (infinite or math.isfinite(value)) for value in values)

    best = max(names, key=available)
    return best if available(best) else None


def fastest_comparable(candidates: Sequence[Candidate], best: Candidate, edit: str) -> str:
    """The fastest method whose edit is at least 0.8 of the best one's, if it is more than twice as fast."""
    comparable = [one for one in candidates if one.edit >= 0.8 * best.edit and not math.isnan(one.seconds)]
    if best not in comparable:
        return ""
    fastest = min(comparable, key=lambda one: one.seconds)
    factor = best.seconds / max(1e-9, fastest.seconds)
    return (
        f" Fastest comparable method: {fastest.name} ({factor:.0f}x faster), {edit} {fastest.edit:.3f}." if factor > 2 else ""
    )


def runner_up(per_image: PerImage, best: str, second: str, name: str) -> str:
    """Whether the images suffice to tell the first from the second: a paired comparison."""
    pairs = zip(per_image[best], per_image[second], strict=True)
    gains = [gain for a, b in pairs if math.isfinite(gain := a.get(name, math.nan) - b.get(name, math.nan))]
    if len(gains) < 2:
        return f"Next: {second}."
    gain = math.fsum(gains) / len(gains)
    error = math.sqrt(math.fsum((one - gain) ** 2 for one in gains) / (len(gains) - 1) / len(gains))
    verdict = "" if gain > 2 * error else "; the difference is not significant"
    return f"Next: {second}, lower by {gain:.3f} ± {2 * error:.3f} (95 %, paired over {len(gains)} images){verdict}."


def counted_as_failures(summary: Summary, methods: Sequence[str]) -> str:
    failures = [f"{name} ({count_diverged(summary, name)})" for name in methods if count_diverged(summary, name)]
    return f" Diverged results (NaN or Inf) count as no edit: {', '.join(failures)}." if failures else ""


def excluded(summary: Summary, methods: Sequence[str], ranked: Sequence[str]) -> str:
    """The methods that are not ranked, by reason."""
    rest = [name for name in methods if name not in ranked]
    diverged = [f"{name} ({count_diverged(summary, name)})" for name in rest if count_diverged(summary, name)]
    unknown = [name for name in rest if not count_diverged(summary, name)]
    note = f" Not ranked, since results diverged (NaN or Inf): {', '.join(diverged)}." if diverged else ""
    return note + (f" Not ranked, for lack of a finite value: {', '.join(unknown)}." if unknown and ranked else "")


def mean(summary: Summary, method: str, name: str) -> float:
    return summary[method][name].mean if name in summary[method] else math.nan


def share_diverged(summary: Summary, method: str) -> float:
    return _or(mean(summary, method, DIVERGED.name), 0.0)


def count_diverged(summary: Summary, method: str) -> str:
    """ "3 of 32", or "" for none."""
    share = share_diverged(summary, method)
    total = summary[method][DIVERGED.name].count if share else 0
    return f"{round(share * total)} of {total}" if share else ""


def _or(value: float, default: float) -> float:
    return default if math.isnan(value) else value
