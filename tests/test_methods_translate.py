"""Requests of predict."""

from pathlib import Path

import pytest
from configuration import configure
from PIL import Image

from dds_train.errors import UserError
from dds_train.methods.translate import plan_translations
from dds_train.translator import Task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (("a", (20, 10)), ("b", (20, 10)), ("c", (8, 8))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    Image.new("L", (20, 10), 255).save(tmp_path / "m.png")
    return tmp_path


def test_predict_takes_images_and_masks_of_a_list(folder: Path) -> None:
    (folder / "e.csv").write_text("image,mask,target\na.png,m.png,a lion\na.png,,\nb.png,auto,a lion\n")
    lion = Task("a cat", "a lion", "a lion")
    requests = plan_translations(str(folder / "e.csv"), None, lion, folder / "out", same_format=False)
    assert [request.result for request in requests] == ["a.png", "a~2.png", "b.png"]
    assert [request.mask for request in requests] == [str(folder / "m.png"), None, "auto"]
    configure("predict", f"image={folder / 'e.csv'}", f"ckpt={folder}")
    for task in (None, Task("a cat", "a dog", "a dog")):
        with pytest.raises(UserError, match=r"target=a lion of a\.png: the task of predict has"):
            plan_translations(str(folder / "e.csv"), None, task, folder / "out", same_format=False)
