"""Which method is recommended, and what is said where none can be."""

import math

import numpy as np
import pytest

from dds_train.evaluation.metrics.metric import Metric
from dds_train.evaluation.metrics.registry import MetricOptions, build_metrics
from dds_train.evaluation.recommendation import KEEP_METRICS, Recommendation, recommend
from dds_train.evaluation.summary import statistic

Rows = dict[str, list[dict[str, float]]]
METRICS: list[Metric] = build_metrics(MetricOptions(lpips_nets=["squeeze", "alex"], clip="a", structure="b"))
GAP, CLIP, LPIPS = "gap closed", "CLIP direction", "LPIPS squeeze"


def recommended(rows: Rows) -> Recommendation:
    def means(some: list[dict[str, float]]) -> dict[str, float]:
        names = list(dict.fromkeys(name for row in some for name in row))
        return {name: statistic([row[name] for row in some if name in row]) for name in names}

    return recommend({method: means(some) for method, some in rows.items()}, rows, METRICS)


def gaps(**values: list[float]) -> Rows:
    """Results that are NaN count as diverged."""
    return {method: [{GAP: value, "diverged": float(math.isnan(value))} for value in some] for method, some in values.items()}


def test_metrics_of_preservation_exist() -> None:
    assert set(KEEP_METRICS) <= {metric.name for metric in METRICS}


def test_the_smallest_gap_to_the_ground_truth_wins() -> None:
    near = {"identity": [0.0, 0.0, 0.0], "vae_reconstruction": [1.0, 1.0, 1.0], "a": [0.5, 0.6, 0.7], "b": [0.7, 0.4, 0.6]}
    kept = {"identity": math.inf, "vae_reconstruction": 40.0, "a": 20.0, "b": 30.0}
    rows = {name: [{GAP: gap, "background PSNR": kept[name]} for gap in some] for name, some in near.items()}
    result = recommended(rows)
    assert (result.best, result.edit, result.keep, result.front) == ("a", GAP, "background PSNR", ("a", "b"))
    gains = np.array([-0.2, 0.2, 0.1])  # of a over b
    assert f"Next: b, lower by 0.033 ± {2 * gains.std(ddof=1) / math.sqrt(3):.3f}" in result.reason
    assert "not significant" in result.reason
    rows["a"] = [{**row, GAP: 0.3 + other[GAP]} for row, other in zip(rows["a"], rows["b"], strict=True)]
    assert "not significant" not in recommended(rows).reason
    for row, gain in zip(rows["a"], (0.05, 0.3, 0.05), strict=True):  # 1.6 standard errors
        row[GAP] = gain
    rows["b"] = [{**row, GAP: 0.0} for row in rows["b"]]
    assert "not significant" in recommended(rows).reason


def test_the_fastest_comparable_method_is_named() -> None:
    edits = {"slow": (0.8, 2.0), "fast": (0.7, 0.01), "faster": (0.5, 0.001), "as slow": (0.75, 1.5)}
    rows = {name: [{GAP: gap, "s / image": seconds}] * 2 for name, (gap, seconds) in edits.items()}
    assert recommended(rows).best == "slow"
    assert "Fastest comparable method: fast (200x faster), gap closed 0.700." in recommended(rows).reason
    del rows["fast"]
    assert "Fastest comparable" not in recommended(rows).reason


def test_without_ground_truth_the_best_balance_wins() -> None:
    def rows(direction: float, lpips: float) -> list[dict[str, float]]:
        return [{CLIP: direction, LPIPS: lpips}] * 3

    each = {"identity": rows(math.nan, 0), "loud": rows(0.3, 0.8), "fair": rows(0.24, 0.1), "meek": rows(0.03, 0.02)}
    each["worse"] = rows(0.2, 0.2)
    result = recommended(each)
    assert (result.best, result.edit, result.keep) == ("fair", CLIP, LPIPS)
    assert f"Balance {2 / (0.3 / 0.24 + 1 / 0.9):.3f}" in result.reason
    assert result.front == ("loud", "fair")  # meek preserves most, and edits too little


# ---------------------------------------------------------------- degenerate inputs


def test_a_method_that_diverged_does_not_stop_the_others() -> None:
    nan = math.nan
    result = recommended(gaps(identity=[0, 0], broken=[nan, nan], a=[0.2, 0.3], b=[0.5, 0.6]))
    assert result.best == "b"
    assert "Not ranked, since results diverged (NaN or Inf): broken (2 of 2)." in result.reason


def test_results_that_diverged_count_as_no_edit() -> None:
    """One of four is perfect, three are lost: no better than 0.25 everywhere."""
    result = recommended(gaps(lucky=[1.0, math.nan, math.nan, math.nan], steady=[0.4, 0.4, 0.4, 0.4]))
    assert result.best == "steady"
    assert "count as no edit: lucky (3 of 4)" in result.reason


@pytest.mark.parametrize("edit", [GAP, CLIP])
def test_nothing_is_recommended_if_no_method_improves_on_the_input(edit: str) -> None:
    values = {"identity": 0.0 if edit == GAP else math.nan, "first": -0.5, "second": -0.1, "none": 0.0}
    rows = {name: [{edit: value, LPIPS: 0.1}] * 3 for name, value in values.items()}
    result = recommended(rows)
    assert result.best is None
    assert f"No method improves on doing nothing: the best of them, none, has {edit} 0.000" in result.reason
    rows["third"] = [{edit: 0.01, LPIPS: 0.1}] * 3
    assert recommended(rows).best == "third"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_rank_nothing(value: float) -> None:
    result = recommended(gaps(identity=[0, 0], a=[value, value], b=[value, value]))
    assert result.best is None
    assert "No method has finite values." in result.reason
    assert ("a (2 of 2), b (2 of 2)" in result.reason) == math.isnan(value)


def test_without_methods_or_metrics_of_the_edit_nothing_is_recommended() -> None:
    assert recommended(gaps(identity=[0.0], vae_reconstruction=[1.0])).reason.startswith("No methods to recommend")
    assert recommended({}).best is None
    for rows in ({"a": [{"PSNR": 20.0}]}, {"a": [], "b": []}):
        result = recommended(rows)
        assert result.best is None
        assert "give ground truth, or a CLIP model" in result.reason


def test_one_method_is_recommended_without_a_runner_up() -> None:
    result = recommended(gaps(a=[0.2, 0.3]))
    assert (result.best, result.reason) == ("a", "Highest gap closed: 0.250.")


def test_ties_go_to_the_method_that_preserves_more_then_to_the_faster() -> None:
    def rows(psnr: float, seconds: float) -> list[dict[str, float]]:
        return [{GAP: 0.5, "background PSNR": psnr, "s / image": seconds}] * 3

    result = recommended({"a": rows(20, 1), "b": rows(30, 1), "c": rows(30, 0.9), "d": rows(math.inf, 5)})
    assert result.best == "d"
    assert "the difference is not significant" in result.reason
    assert recommended({"a": rows(20, 1), "b": rows(30, 1), "c": rows(30, 0.9)}).best == "c"


def test_metrics_that_some_methods_lack_do_not_stop_the_ranking() -> None:
    rows = {"a": [{GAP: 0.5, LPIPS: 0.1}], "b": [{GAP: 0.6}], "c": [{CLIP: 0.9, LPIPS: 0.2}]}
    result = recommended(rows)
    assert (result.best, result.edit, result.front) == ("b", GAP, ("a",))
    assert "Not ranked, for lack of a finite value: c." in result.reason


def test_edits_that_change_nothing_are_not_ranked_by_their_direction() -> None:
    """CLIP's direction is NaN where the image does not change."""
    still = [{CLIP: math.nan, LPIPS: 0.0, "diverged": 0.0}]
    assert recommended({"identity": still, "still": still, "a": [{CLIP: 0.1, LPIPS: 0.2, "diverged": 0.0}]}).best == "a"
    assert recommended({"identity": still, "still": still}).best is None
