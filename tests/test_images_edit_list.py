"""Paths in edit lists."""

import json
from pathlib import Path

import pytest

from dds_train.errors import UserError
from dds_train.images.edit_list import EditListRow, read_edit_list


def test_home_folder_in_every_cell_with_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "m.png", "t.png"):
        (tmp_path / name).touch()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "e.csv").write_text("image,mask,truth\n~/a.png,~/m.png,~/t.png\n../a.png,../m.png,../t.png\n")
    home, relative = read_edit_list("~/lists/e.csv")
    assert home == EditListRow(tmp_path / "a.png", mask=str(tmp_path / "m.png"), truth=str(tmp_path / "t.png"))
    assert relative.image.resolve() == home.image
    (tmp_path / "lists" / "e.csv").write_text("image,mask\n~/a.png,~/none.png\n")
    with pytest.raises(UserError, match=r"line 2: mask='~/none\.png': no such file"):
        read_edit_list("~/lists/e.csv")


def test_line_separators_within_a_cell(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    row = {"image": "a.png", "source": "a cat\u2028asleep"}
    (tmp_path / "e.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [one.source for one in read_edit_list(tmp_path / "e.jsonl")] == [row["source"]]
    (tmp_path / "e.csv").write_text('image,source\na.png,"a cat\nasleep"\n')
    assert [one.source for one in read_edit_list(tmp_path / "e.csv")] == ["a cat\nasleep"]
