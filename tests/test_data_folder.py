"""Folders of images and their captions."""

from pathlib import Path

import pytest
from PIL import Image

from dds_train.data.folder import FolderSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


def test_captions_of_a_folder(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a gray cat\n")
    (tmp_path / "metadata.csv").write_text('file_name,text\nb.png,"a cat, asleep"\nc.png,a black cat\n')
    assert FolderSource(str(tmp_path), checkpoint).captions == ["a gray cat", "a cat, asleep", "a black cat"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,x\n")
    with pytest.raises(UserError, match=r"c\.png: no caption"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    (tmp_path / "metadata.csv").write_text("name,words\n")
    with pytest.raises(UserError, match="columns file_name and text"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    with pytest.raises(UserError, match=r"data\.size=30"):
        FolderSource(str(tmp_path), checkpoint, size=30)


def test_home_folder_and_byte_order_mark_in_metadata(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (8, 8)).save(photos / name)
    (photos / "metadata.csv").write_text("file_name,text\n~/photos/a.png,one\n./sub/b.png,two\n", encoding="utf-8-sig")
    for path, captions in (("~/photos", ["one", "two"]), ("~/photos/*.png", ["one"]), (str(photos), ["one", "two"])):
        assert FolderSource(path, checkpoint).captions == captions
    (photos / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\n")
    with pytest.raises(UserError, match=r"metadata\.csv: line 2: cannot be read as UTF-8"):
        _ = FolderSource("~/photos", checkpoint).captions
