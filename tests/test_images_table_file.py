"""Tables as spreadsheets, pandas and people write them: read alike, or refused with the line."""

import json
from pathlib import Path

import pytest

from dds_train.errors import UserError
from dds_train.images.edit_list import EditListRow, read_edit_list

PLAIN = "image,source,target,seed\na.png,a cat,a lion,12\nsub/b.png,,,\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).touch()
    return tmp_path


def rows(folder: Path) -> list[EditListRow]:
    return [EditListRow(folder / "a.png", "a cat", ("a lion",), seed=12), EditListRow(folder / "sub" / "b.png")]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        b"sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n").encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace("image,source", " Image , SOURCE").encode(),
        PLAIN.replace("\n", ",\n").encode(),
        (PLAIN + "\n,,,\n  \n").encode(),
        b",image,source,target,seed\n0,a.png,a cat,a lion,12.0\n1,sub/b.png,,,\n",
        b"image,source,target,mask,seed\na.png,a cat,a lion,NaN,12\nsub/b.png,NaN,,nan,nan\n",
        PLAIN.replace("sub/b", "sub\\b").encode(),
        ("\ufeff" + PLAIN).encode("utf-16"),  # with two marks: converted from a file that had one
        b"image,source,target,seed\na.png, a cat ,a lion,12\nsub/b.png,,,\n",
    ],
)
def test_what_is_unambiguous_is_read(folder: Path, content: bytes) -> None:
    (folder / "e.csv").write_bytes(content)
    assert read_edit_list(folder / "e.csv") == rows(folder)


def test_separators_within_cells(folder: Path) -> None:
    text = 'image;source\na.png;"a cat, asleep; and\u2028old\r\nand gray"\n'
    (folder / "e.csv").write_bytes(text.encode())
    assert [row.source for row in read_edit_list(folder / "e.csv")] == ["a cat, asleep; and\u2028old\nand gray"]


@pytest.mark.parametrize("name", ["e.json", "e.jsonl"])
def test_a_json_array_is_a_list_too(folder: Path, name: str) -> None:
    objects = [
        {"image": "a.png", "source": "a cat", "target": ["a lion"], "seed": 12.0, "mask": None},
        {"image": "sub/b.png", "seed": float("nan")},
    ]
    (folder / name).write_text(json.dumps(objects, indent=1))
    assert read_edit_list(folder / name) == rows(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("e.csv", b"image,target,Target\na.png,x,y\n", "line 1: the column target is there twice"),
        ("e.jsonl", b'{"image": "a.png", "seed": 1, "seed": 2}', "line 1: the column seed is there twice"),
        ("e.csv", b"image,seed\na.png,12.7\n", "line 2: seed='12.7': give a whole number"),
        ("e.jsonl", b'{"image": "a.png", "seed": 12.7}', "line 1: seed=12.7: give a whole number"),
        ("e.jsonl", b'{"image": "a.png", "seed": true}', "line 1: seed=True: give a whole number"),
        ("e.csv", b"image,seed\na.png,-1\n", "line 2: seed='-1': give a whole number"),
        ("e.csv", b"image,seed\na.png,4294967296\n", "line 2: seed='4294967296': give a whole number"),
        ("e.csv", b"image,source\na.png,a cat\na.png,caf\xe9\n", "line 3: cannot be read as UTF-8 text"),
        ("e.csv", b"image,source\na.png,a cat, asleep\n", "line 2: unknown column, of ' asleep'; quote cells that have a ','"),
        ("e.csv", b"image,\na.png,note\n", "line 2: unknown column, of 'note'"),
        ("e.csv", b"image\n" + b"x" * 300 + b".png\n", "no such file"),
        ("e.csv", b'image,source\na.png,"a cat\n', "line 2: "),
    ],
)
def test_the_rest_is_refused_with_its_line(folder: Path, name: str, content: bytes, says: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_edit_list(folder / name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
