"""What has become of the images of a run."""

import errno
from pathlib import Path

import pytest
from PIL import Image

from dds_train.data.source import StorageError
from dds_train.errors import PartlyDone, UserError
from dds_train.methods.outcome import Outcome, stops


def test_a_single_file_stops_and_many_do_not(image_folder: Path) -> None:
    (image_folder / "e.csv").write_text("image\na.png\n")
    file, folder, table = (str(image_folder / name) for name in ("a.png", "", "e.csv"))
    assert [stops("auto", spec) for spec in (file, folder, table, [file], f"{folder}/*.png")] == [True, *[False] * 4]
    assert stops("stop", folder)
    assert not stops("skip", file)


def test_an_image_that_fails_is_left_out_and_a_disk_that_fails_is_not() -> None:
    outcome, image = Outcome(stop=False), Path("a.png")
    for error in (UserError("a.png: not a readable image"), FileNotFoundError(errno.ENOENT, "gone", "a.png")):
        with outcome.leaving_out(image, edits=2):
            raise error
    assert outcome.count == 4
    assert outcome.failed[0] == ("a.png", "not a readable image")
    broken = UserError("a.png: cannot be read")
    broken.__cause__ = OSError(errno.EIO, "Input/output error")
    for error, raised in ((broken, StorageError), (OSError(errno.EMFILE, "files"), StorageError), (MemoryError(), MemoryError)):
        with pytest.raises(raised), outcome.leaving_out(image):
            raise error
    assert outcome.count == 4
    with pytest.raises(UserError, match="bad"), Outcome(stop=True).leaving_out(image):
        raise UserError("bad")


def test_all_ranks_report_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    pairs = [(tmp_path / "a.png", tmp_path / "b.png")]
    first, second = Outcome(stop=False, made=2, found=1), Outcome(stop=False, made=1, failed=[("x.png", "a, b")])
    with pytest.raises(PartlyDone, match=r"1 of 5 images failed; the reasons are in .*failed\.csv"):
        Outcome.of_all([first.values(), second.values()]).report(tmp_path, pairs, 5, "image")
    printed = (
        f"1 of 5 images are in {tmp_path} already\n1 image in {tmp_path}; before and after: {tmp_path / 'before_after.png'}\n"
    )
    assert capsys.readouterr().out == printed
    assert (tmp_path / "failed.csv").read_bytes() == b'image,reason\r\nx.png,"a, b"\r\n'
    with pytest.raises(PartlyDone, match="2 of 3 images are missing; run the same command again"):
        first.report(tmp_path, pairs, 3, "image")
    assert not (tmp_path / "failed.csv").exists()
    first.report(tmp_path, pairs, 1, "image")
