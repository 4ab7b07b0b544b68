"""Edit lists as people have them."""

import json
from pathlib import Path

import pytest
from configuration import configure, refusals

from dds_train.cli.schema import images_or_edit_list
from dds_train.errors import UserError
from dds_train.images.edit_list import EditListRow, is_edit_list, read_edit_list


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


def test_a_folder_may_have_its_list_with_it(image_folder: Path) -> None:
    assert not is_edit_list(str(image_folder))
    (image_folder / "lists").mkdir()
    (image_folder / "lists" / "edits.csv").write_text("image,truth\n../a.png,../b.png\n")
    assert is_edit_list(str(image_folder / "lists"))
    (entry,) = read_edit_list(image_folder / "lists")
    assert (entry.image.resolve(), Path(str(entry.truth)).resolve()) == (image_folder / "a.png", image_folder / "b.png")
    images_or_edit_list(str(image_folder / "lists"))  # has no images itself
    (image_folder / "lists" / "edits.csv").write_text("image,truth\n../a.png,none.png\n")
    with pytest.raises(ValueError, match=r"line 2: truth='none\.png': no such file"):
        images_or_edit_list(str(image_folder / "lists"))


def test_excel_writes_a_mark_at_the_start(image_folder: Path) -> None:
    (image_folder / "e.csv").write_text("image\na.png\n", encoding="utf-8-sig")
    assert [entry.image for entry in read_edit_list(image_folder / "e.csv")] == [image_folder / "a.png"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("e.csv", "image,sorce\na.png,x\n", "line 2: unknown column sorce"),
        ("e.csv", "image,target\na.png,x\nnone.png,x\n", "line 3: "),
        ("e.csv", "image,target\n,x\n", "line 2: no image"),
        ("e.csv", "image\n", "no lines"),
        ("e.csv", "image,seed\na.png,x\n", "line 2: seed='x'"),
        ("e.csv", "image,mask\na.png,none.png\n", "line 2: mask='none.png'"),
        ("e.csv", "image\na.png,b,c\n", "line 2: unknown column"),
        ("e.jsonl", '{"image": "a.png"}\n{', "line 2: not JSON"),
        ("e.jsonl", "[1]", "line 1: give an object"),
        ("e.jsonl", '{"image": "a.png", "target": []}', "line 1: target=[]"),
        ("e.jsonl", '{"image": "a.png", "source": 3}', "line 1: source=3"),
    ],
)
def test_mistakes_in_a_list_name_the_line(image_folder: Path, name: str, text: str, says: str) -> None:
    (image_folder / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_edit_list(image_folder / name)
    assert says in str(error.value)
    assert str(image_folder / name) in str(error.value)


def test_a_list_that_says_everything_needs_no_prompts(image_folder: Path) -> None:
    (image_folder / "e.csv").write_text("image,source,target\na.png,a cat,a dog\n")
    configure("optimize", f"image={image_folder / 'e.csv'}")
    (image_folder / "e.csv").write_text("image,source,target\na.png,a cat,a dog\nb.png,a cat,\n")
    assert refusals("optimize", f"image={image_folder / 'e.csv'}")[0].startswith("optimize needs target=...;")
