"""The notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

# What only takes time: the saved outputs are those of all steps.
FEWER = {
    "steps=100": "steps=4",
    "steps=200": "steps=4",  # of trainer.max_steps too
    "(25, 50, 100, 200)": "(1, 2, 3, 4)",
    "step_counts=[25,50]": "step_counts=[1,2]",
    "(25, 50)": "(1, 2)",
    "draws=16": "draws=2",
    "data.count=128": "data.count=32",
}
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for many, few in FEWER.items():
            cell.source = cell.source.replace(many, few)
    # Raises at the first cell that does.
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len([one for one in outputs if {"image/png", "text/markdown"} & set(one.get("data", {}))]) >= 5


def test_all_that_takes_time_is_still_there() -> None:
    text = " ".join(path.read_text().replace("\\", "") for path in NOTEBOOKS)
    assert [many for many in FEWER if many not in text] == []


def test_notebooks_are_shown_with_their_images() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))
        assert not any(output.get("name") == "stderr" for output in outputs)
        assert path.stat().st_size < 2_000_000
