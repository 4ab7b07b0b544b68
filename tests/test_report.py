"""report.html with its plot; table.md, per_image.csv and metrics.json."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dds_train.evaluation.metrics.metric import Metric
from dds_train.evaluation.metrics.registry import MetricOptions, Unavailable, build_metrics
from dds_train.evaluation.plot import Point, overlap, scatter, shortened, ticks
from dds_train.evaluation.report import GalleryRow, Report, write_report
from dds_train.evaluation.summary import Statistic, Summary, statistic
from dds_train.evaluation.tables import markdown, metrics_json, per_image_csv, table_of_translators, three_digits

METRICS: list[Metric] = build_metrics(MetricOptions())


def summary_of(values: dict[str, dict[str, float]]) -> Summary:
    return {method: {name: statistic([value]) for name, value in row.items()} for method, row in values.items()}


def test_nan_values_are_counted_and_left_out() -> None:
    assert statistic([1.0, math.nan, 3.0]) == Statistic(2.0, pytest.approx(1.0), 2, 1)  # deviation sqrt(2), over sqrt(2)
    lost = statistic([math.nan, math.nan])
    assert math.isnan(lost.mean)
    assert (lost.count, lost.nan) == (0, 2)
    infinite = statistic([math.inf, 1.0])
    assert infinite.mean == math.inf
    assert math.isnan(infinite.error)


# ---------------------------------------------------------------- tables


def test_the_table_of_critters_has_the_exact_metrics_in_order() -> None:
    names = [metric.name for metric in METRICS]
    row = dict.fromkeys(names, 0.12345)
    table = markdown(summary_of({"dds": {**row, "background PSNR": math.inf, "gap closed": -1e-9}}), METRICS)
    columns = "gap closed | edit accuracy | species | fur | backdrop | accessories | background PSNR | s / image"
    assert table.splitlines()[0] == f"| method | {columns} |"
    assert table.splitlines()[2] == "| dds | 0.000 | 0.12 | 0.12 | 0.12 | 0.12 | 0.12 | inf | 0.123 |"
    del row["species"]
    assert " species " not in markdown(summary_of({"dds": row}), METRICS)


def test_the_table_of_other_images_has_all_metrics_but_memory() -> None:
    table = markdown(
        summary_of({"a|b": {"PSNR": 20.04, "SSIM": 0.5, "s / image": 1, "peak MiB": 9}, "c": {"PSNR": 1}}), METRICS
    )
    assert table.splitlines()[0] == "| method | PSNR | SSIM | s / image |"
    assert table.splitlines()[2:] == ["| a\\|b | 20.0 | 0.50 | 1.000 |", "| c | 1.0 |  |  |"]


def test_csv_text_is_no_formula() -> None:
    rows = [{"image": "=1+1", "method": "dds", "PSNR": -1.5}, {"image": "a,b", "method": "@x", "SSIM": 0.5}]
    read = list(csv.DictReader(io.StringIO(per_image_csv(rows))))
    assert [row["image"] for row in read] == ["'=1+1", "a,b"]
    assert [row["method"] for row in read] == ["dds", "'@x"]
    assert [row["PSNR"] for row in read] == ["-1.5", ""]


def test_metrics_json_says_what_each_metric_is() -> None:
    values = {"identity": {"PSNR": math.inf, "gap closed": 0.5}, "dds": {"PSNR": 20.0}, "translator a": {"gap closed": 0.71234}}
    text = metrics_json(summary_of(values), METRICS, ["weights of CLIP"])
    content = json.loads(text)
    assert content["methods"]["identity"]["PSNR"] == {"mean": "inf", "error": None, "count": 1, "nan": 0}
    assert content["metrics"]["PSNR"] == {
        "direction": 1,
        "unit": "dB",
        "meaning": next(m.meaning for m in METRICS if m.name == "PSNR"),
    }
    assert content["unavailable"] == ["weights of CLIP"]
    table = table_of_translators(text).splitlines()
    assert table[0] == "| method | gap closed | PSNR |"
    assert table[2:] == ["| identity | 0.500 | ∞ |", "| translator a | 0.712 |  |"]


def test_numbers_have_three_significant_digits() -> None:
    shown = [three_digits(v) for v in (0.73812, 12.345, 1234.5, 0.000123, 1e-12, -0.5, math.inf, math.nan)]
    assert shown == ["0.738", "12.3", "1,234", "0.00012", "0", "-0.500", "∞", "NaN"]


# ---------------------------------------------------------------- plot


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.213, 0.764), (-3, 1000), (5, 5), (29.6, 41.7)])
def test_ticks_enclose_what_is_plotted(low: float, high: float) -> None:
    values = ticks(low, high)
    assert values[0] <= low <= high <= values[-1]
    assert 2 <= len(values) <= 9
    assert np.ptp(np.diff(values)) < 1e-9
    assert str(values[1] - values[0])[0] in "1250"


def test_points_are_where_their_values_are() -> None:
    points = [Point("a", 0.0, 0.0), Point("b", 2.0, 1.0), Point("far", math.inf, 0.5), Point("none", math.nan, 0.5)]
    points.append(Point("middle", 1.0, 0.5))
    for flip in (False, True):
        svg = scatter(points, [["a", "b"]], "x", "y", flip)
        (ax, ay), (bx, by), (fx, _), (mx, my) = [tuple(map(float, c)) for c in re.findall(r'cx="(\S+)" cy="(\S+)"', svg)]
        assert ay > by  # upwards
        assert (ax > bx) == flip
        assert fx > max(ax, bx)
        assert (mx, my) == (pytest.approx((ax + bx) / 2, abs=0.1), pytest.approx((ay + by) / 2, abs=0.1))
    assert scatter(points[:1], [], "x", "y") == ""


def test_labels_do_not_overlap() -> None:
    assert shortened(["dds, 25 steps", "dds, 50 steps", "dds"]) == {"dds, 25 steps": "25 steps", "dds, 50 steps": "50 steps"}
    assert shortened(["t a, strength 0.5", "t a, strength 1"]) == {"t a, strength 0.5": "0.5"}
    rng = np.random.default_rng(0)
    points = [Point(f"method {i}", *rng.uniform(0, 1, 2)) for i in range(12)]
    svg = scatter(points, [], "x", "y")
    labels = re.findall(r'<text x="(\S+)" y="(\S+)" fill="#222">(.*?)</text>', svg)
    assert [label for *_, label in labels] == [point.name for point in points]
    boxes = [(float(x), float(y) - 10, float(x) + 6.4 * len(label), float(y) + 3) for x, y, label in labels]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert all(box[0] > 0 and box[2] < 760 for box in boxes)


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Fails on a tag that is closed before it was opened; collects images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(str(dict(attrs)["src"]))
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def report_of(tmp_path: Path) -> Report:
    """Three images, the last of which diverged."""
    Image.new("RGB", (8, 9)).save(tmp_path / "any.png")
    gaps = {"identity": 0, "vae_reconstruction": 0.98, "sds": 0.4, "<dds>": 0.7}
    kept = {"identity": math.inf, "vae_reconstruction": 20, "sds": 18, "<dds>": 19}
    rows = [
        GalleryRow(
            name,
            "a → b",
            lambda: (torch.zeros(3, 8, 9), torch.ones(3, 8, 9)),
            {
                method: {"gap closed": gap * factor, "background PSNR": kept[method], "diverged": float(math.isnan(factor))}
                for method, gap in gaps.items()
            },
            dict.fromkeys(gaps, tmp_path / ("none.png" if math.isnan(factor) else "any.png")),
        )
        for name, factor in {"first": 0.5, "second": 0.9, "third": math.nan}.items()
    ]
    summary = {
        method: {
            name: statistic([row.values[method][name] for row in rows])
            for name in ("gap closed", "background PSNR", "diverged")
        }
        for method in gaps
    }
    unavailable = [Unavailable(["CLIP target", "CLIP direction"], "no weights"), Unavailable(["FID"], "no file")]
    return Report("a cat → a lion", "3 images", summary, METRICS, [["sds", "<dds>"]], rows, unavailable)


def test_the_page_recommends_a_method(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report_of(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert "Use <b>&lt;dds&gt;</b>" in text
    assert "3 metrics unavailable: model weights not found" in text
    assert "CLIP target, CLIP direction: no weights" in text
    assert text.index("<td>second") < text.index("<td>first") < text.index("<td>third")  # best first
    assert "<svg" in text
    assert re.search(r"class=best>0\.490", text)  # 0.7 of the mean of 0.5 and 0.9
    assert "(1 NaN)" in text
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) == 3 * 2 + 2 * 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)  # nothing from elsewhere


def test_results_that_diverged_are_counted_as_failures(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    write_report(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<td class=diverged>1 of 3</td>") == 4
    assert text.count("<td>diverged</td>") == 4  # in the gallery, in place of an image
    fine = {method: {**values, "diverged": statistic([0.0] * 3)} for method, values in report.summary.items()}
    write_report(tmp_path / "report.html", Report(report.title, "", fine, METRICS, [], report.rows))
    assert "<td class=diverged>" not in (tmp_path / "report.html").read_text()


def test_a_long_gallery_shows_best_and_worst(tmp_path: Path) -> None:
    for limit, shown in ((2, ["second", "third"]), (1, ["second"])):
        write_report(tmp_path / "report.html", report_of(tmp_path), limit)
        text = (tmp_path / "report.html").read_text()
        assert [name for name in ("first", "second", "third") if f"<td>{name}" in text] == shown
        assert f"{limit} of 3 images" in text
