"""Files of an evaluation: table.md, per_image.csv, metrics.json, sheet.png and report.html."""

from pathlib import Path

from torch import Tensor

from dds_train.evaluation.configured import curves
from dds_train.evaluation.evaluate import Evaluation
from dds_train.evaluation.items import EvaluationItem
from dds_train.evaluation.report import GalleryRow, Report, write_report
from dds_train.evaluation.tables import markdown, metrics_json, per_image_csv
from dds_train.images.files import save_image
from dds_train.images.grids import labelled_grid


def write_outputs(folder: Path, evaluation: Evaluation, description: str, rows: int) -> str:
    """Write all files; the table, in Markdown.

    Args:
        description: of items and teacher, in a line.
        rows: items in the sheet.
    """
    items, methods, results = evaluation.items, list(evaluation.methods), evaluation.results
    table = markdown(evaluation.summary, evaluation.metrics)
    (folder / "table.md").write_text(table, encoding="utf-8")
    (folder / "metrics.json").write_text(
        metrics_json(evaluation.summary, evaluation.metrics, [one.remedy for one in evaluation.unavailable]), encoding="utf-8"
    )
    each = [{"image": item.name, "method": method, **results.values(method, item)} for item in items for method in methods]
    (folder / "per_image.csv").write_text(per_image_csv(each), encoding="utf-8", newline="")
    save_image(sheet(evaluation, rows), folder / "sheet.png")
    write_report(folder / "report.html", report(evaluation, description))
    return table


def sheet(evaluation: Evaluation, rows: int) -> Tensor:
    """A row for each of the first items, a column for input, ground truth and each method; [3,H,W]. Black if it diverged."""
    items = evaluation.items[:rows]
    loaded = [item.load() for item in items]
    columns = {"input": [item.image[0] for item in loaded]}
    if any(item.has_truth for item in items):
        columns["ground truth"] = [(item.image if item.truth is None else item.truth)[0] for item in loaded]
    for method in evaluation.methods:
        columns[method] = [evaluation.results.output(method, item).nan_to_num(-1) for item in items]
    return labelled_grid(columns, [item.name for item in items])


def report(evaluation: Evaluation, description: str) -> Report:
    items, results = evaluation.items, evaluation.results
    one_edit = len({(item.source, item.target) for item in items}) == 1

    def row(item: EvaluationItem) -> GalleryRow:
        def load() -> tuple[Tensor, Tensor | None]:
            loaded = item.load()
            return loaded.image[0], None if loaded.truth is None else loaded.truth[0]

        prompts = "" if one_edit else f"{item.source} → {item.target}"
        paths = {method: results.path(method, item) for method in evaluation.methods}
        return GalleryRow(item.name, prompts, load, {method: results.values(method, item) for method in paths}, paths)

    return Report(
        title=f"{items[0].source} → {items[0].target}" if one_edit else "Edits of several prompts",
        description=description,
        summary=evaluation.summary,
        metrics=evaluation.metrics,
        curves=curves(evaluation.methods),
        rows=[row(item) for item in items],
        unavailable=evaluation.unavailable,
    )
