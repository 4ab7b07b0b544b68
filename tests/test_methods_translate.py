"""Requests of predict."""

from pathlib import Path

import pytest
from configuration import configure

from dds_train.errors import UserError
from dds_train.methods.translate import plan_translations
from dds_train.translator import Task


def test_predict_takes_images_and_masks_of_a_list(image_folder: Path) -> None:
    (image_folder / "e.csv").write_text("image,mask,target\na.png,m.png,a lion\na.png,,\nb.png,auto,a lion\n")
    lion = Task("a cat", "a lion", "a lion")
    requests = plan_translations(str(image_folder / "e.csv"), None, lion, image_folder / "out", same_format=False)
    assert [request.result for request in requests] == ["a.png", "a~2.png", "b.png"]
    assert [request.mask for request in requests] == [str(image_folder / "m.png"), None, "auto"]
    configure("predict", f"image={image_folder / 'e.csv'}", f"ckpt={image_folder}")
    for task in (None, Task("a cat", "a dog", "a dog")):
        with pytest.raises(UserError, match=r"target=a lion of a\.png: the task of predict has"):
            plan_translations(str(image_folder / "e.csv"), None, task, image_folder / "out", same_format=False)
