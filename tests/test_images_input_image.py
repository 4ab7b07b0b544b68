"""Input images, and their sizes by headers."""

from pathlib import Path

import pytest
from PIL import Image, ImageFile

from dds_train.errors import UserError
from dds_train.images.input_image import header_size, read_input_image


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".gif", ".bmp"])
@pytest.mark.parametrize("max_side", [None, 16, 7])
def test_headers_tell_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, max_side: int | None) -> None:
    sizes = {}
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}{suffix}"
        Image.new("RGB", (40, 10), "red").save(path, **({} if suffix in (".gif", ".bmp") else {"exif": exif}))
        sizes[path] = read_input_image(path, max_side).size

    def load(image: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert {path: header_size(path, max_side) for path in sizes} == sizes


def test_what_is_no_image_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    for name, reason in (("page.png", "not a readable image"), ("none.png", "No such file")):
        with pytest.raises(UserError, match=rf"{name}: .*{reason}"):
            header_size(tmp_path / name, None)
