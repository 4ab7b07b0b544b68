"""Results as files for people and programs: table.md, per_image.csv, metrics.json."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dds_train.evaluation.configured import REFERENCES
from dds_train.evaluation.metrics.cost import DIVERGED, PEAK_MIB
from dds_train.evaluation.metrics.metric import Metric
from dds_train.evaluation.summary import Summary


def measured(summary: Summary, metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics that some method has."""
    return [metric for metric in metrics if any(metric.name in values for values in summary.values())]


def markdown(summary: Summary, metrics: Sequence[Metric]) -> str:
    """A row for each method; the exact metrics where they are known of critters, else all but memory."""
    columns = measured(summary, metrics)
    if "edit accuracy" in (metric.name for metric in columns):
        columns = [metric for metric in columns if metric.exact]
    else:
        columns = [metric for metric in columns if metric not in (PEAK_MIB, DIVERGED)]
    rows = [["method", *(metric.name for metric in columns)], ["---"] * (len(columns) + 1)]
    for method, values in summary.items():
        rows.append([method, *(rounded(values[m.name].mean, m.decimals) if m.name in values else "" for m in columns)])
    return as_markdown(rows)


def as_markdown(rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def rounded(value: float, decimals: int) -> str:
    return f"{round(value, 6) + 0.0:.{decimals}f}"  # without -0.000


def three_digits(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "NaN")
    if abs(value) < 1e-9:
        return "0"
    digits = max(0, min(5, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def per_image_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column for each key of any row. Text that a spreadsheet would run as a formula is quoted with an apostrophe."""

    def cell(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def metrics_json(summary: Summary, metrics: Sequence[Metric], unavailable: Sequence[str]) -> str:
    """Values by method and metric, and what each metric is."""
    about = {m.name: {"direction": m.direction, "unit": m.unit, "meaning": m.meaning} for m in measured(summary, metrics)}
    methods = {method: {name: asdict(value) for name, value in values.items()} for method, values in summary.items()}
    return json.dumps(plain({"methods": methods, "metrics": about, "unavailable": list(unavailable)}), indent=2)


def plain(value: Any) -> Any:
    """For JSON, which has no infinity and no NaN: "inf" and null."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def table_of_translators(metrics_json: str) -> str:
    """A Markdown table of the translators in metrics.json, beside the references. Raises ValueError, KeyError, TypeError or
    AttributeError if it is no such file."""
    content = json.loads(metrics_json)
    methods = {n: v for n, v in content["methods"].items() if n in REFERENCES or n.startswith("translator ")}
    names = [name for name in content["metrics"] if any(name in values for values in methods.values())]

    def cell(values: Mapping[str, Any], name: str) -> str:
        mean = values[name]["mean"] if name in values else None
        return "" if mean is None else three_digits(float(mean))

    rows = [["method", *names], ["---"] * (len(names) + 1)]
    return as_markdown([*rows, *([method, *(cell(values, name) for name in names)] for method, values in methods.items())])
