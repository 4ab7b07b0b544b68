"""Masks of images by file name."""

from pathlib import Path

import pytest

from dds_train.errors import UserError
from dds_train.images.find import find_images
from dds_train.images.masks import MaskFinder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return touch(tmp_path / "photos", "1.jpg", "a/cat.jpg", "b/cat.jpg")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_one_value_for_all_images(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MaskFinder(None)(photos / "1.jpg") is None
    assert MaskFinder("auto")(photos / "1.jpg") == "auto"
    monkeypatch.setenv("HOME", str(touch(tmp_path, "m.png")))
    assert MaskFinder("~/m.png")(photos / "1.jpg") == str(tmp_path / "m.png")
    with pytest.raises(UserError, match="mask=/nowhere: no such file or folder"):
        MaskFinder("/nowhere")


@pytest.mark.parametrize("name", ["1.png", "1_mask.png", "1-mask.PNG", "1.mask.webp"])
def test_name_or_name_with_a_suffix(photos: Path, tmp_path: Path, name: str) -> None:
    masks = touch(tmp_path / "masks", name, "1.json", "2.png", "11.png")
    assert MaskFinder(str(masks))(photos / "1.jpg") == str(masks / name)


def test_exact_name_comes_before_a_suffix(photos: Path, tmp_path: Path) -> None:
    masks = touch(tmp_path / "masks", "1.png", "1_mask.png")
    assert MaskFinder(str(masks))(photos / "1.jpg") == str(masks / "1.png")


def test_a_file_that_is_no_image_is_no_mask(photos: Path, tmp_path: Path) -> None:
    masks = touch(tmp_path / "masks", "1.json", "1.txt", "2.png")
    with pytest.raises(UserError, match=r"no mask named 1\.\* or 1_mask\.\* there for .*1\.jpg"):
        MaskFinder(str(masks))(photos / "1.jpg")


@pytest.mark.parametrize("names", [("1.png", "1.jpg"), ("1_mask.png", "1-mask.png")])
def test_two_masks_of_an_image_are_both_named(photos: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    masks = touch(tmp_path / "masks", *names)
    with pytest.raises(UserError) as error:
        MaskFinder(str(masks))(photos / "1.jpg")
    assert all(str(masks / name) in str(error.value) for name in names)


def test_sub_folders_are_those_of_the_images(photos: Path, tmp_path: Path) -> None:
    mask_of = MaskFinder(str(touch(tmp_path / "masks", "a/cat.png", "b/cat_mask.png", "cat.png")))
    assert mask_of(photos / "a" / "cat.jpg") == str(tmp_path / "masks" / "a" / "cat.png")
    assert mask_of(photos / "b" / "cat.jpg") == str(tmp_path / "masks" / "b" / "cat_mask.png")


def test_masks_in_one_folder_serve_images_in_several_but_not_one_mask_two_of_them(photos: Path, tmp_path: Path) -> None:
    mask_of = MaskFinder(str(touch(tmp_path / "masks", "cat.png", "1.png")))
    assert mask_of(photos / "a" / "cat.jpg") == mask_of(photos / "a" / "cat.jpg") == str(tmp_path / "masks" / "cat.png")
    with pytest.raises(UserError, match=r"the mask of both .*a/cat\.jpg and .*b/cat\.jpg"):
        mask_of(photos / "b" / "cat.jpg")


def test_masks_may_lie_beside_their_images(photos: Path) -> None:
    touch(photos, "1_mask.png")
    assert MaskFinder(str(photos))(photos / "1.jpg") == str(photos / "1_mask.png")


def test_the_folder_is_listed_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []

    def counting(folder: Path, key: str) -> list[Path]:
        listed.append(folder)
        return find_images(folder, key)

    monkeypatch.setattr("dds_train.images.masks.find_images", counting)
    masks = touch(tmp_path / "masks", *(f"{i}.png" for i in range(50)))
    images = [photos / f"{i}.jpg" for i in range(50)]
    touch(photos, *(image.name for image in images))
    mask_of = MaskFinder(str(masks))
    assert [mask_of(image) for image in images] == [str(masks / f"{i}.png") for i in range(50)]
    assert listed == [masks]
