"""Image files by path, folder and pattern, and the names of their results."""

import os
from collections import Counter
from pathlib import Path

import pytest

from dds_train.errors import UserError
from dds_train.images.files import read_image
from dds_train.images.find import HAS_HEIC, check_images, find_images, find_inputs, unique_name


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(spec: str | list[str], output_dir: str = "out") -> list[str]:
    return [name for name, _ in find_inputs(spec, output_dir)]


def test_a_folder_is_searched_up_to_its_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a", *(f"{number}.png" for number in range(50)))
    touch(tmp_path / "none", "notes.txt")
    seen: list[str] = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: (seen.append(str(path)), isfile(path))[1])
    check_images(tmp_path / "a")
    assert len(seen) == 1
    for spec, reason in (("none", "no images in this folder"), ("x*", "no such file or folder, and no file matches")):
        with pytest.raises(UserError, match=reason):
            check_images(tmp_path / spec)


def test_images_of_a_folder_a_file_and_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.JPG", "sub/c.webp", "notes.txt", "._a.JPG", ".cache/d.png")
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png", "c.webp"]
    assert [p.name for p in find_images(tmp_path / "*.png")] == ["b.png"]
    assert find_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    for missing in (tmp_path / "none", tmp_path / "*.gif"):
        with pytest.raises(UserError, match="no file matches"):
            find_images(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        find_images(tmp_path / "empty")


def test_names_keep_sub_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "p/a.png", "p/sub/a.png", "p/sub/a.jpg", "p/b.c.png", "q/a.png", "p/out/a.png", "p/out/deep/b.png")
    assert names_of("p", "p/out") == ["a", "b.c", "sub/a-jpg", "sub/a-png"]
    assert names_of("p/sub/*.png") == ["a"]
    assert names_of("p/*/a.png", "p/out") == ["sub/a"]
    assert names_of(str(tmp_path / "p" / "sub" / "a.jpg")) == ["a"]
    assert names_of(["p/a.png", "q/a.png"]) == ["a-png", "a-png~2"]
    with pytest.raises(UserError, match="only results"):
        find_inputs("p/out", "p/out")


def test_results_in_a_linked_output_folder_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "p/a.png", "p/out/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "p" / "out")
    assert names_of(str(tmp_path / "p"), str(tmp_path / "link")) == ["a"]


@pytest.mark.parametrize(
    "files",
    [
        ["a.png", "a.jpg", "a-png.png"],
        ["a.png", "a.jpg", "a-png.webp", "a-jpg.bmp"],
        ["x/a.png", "y/a.png", "x/a-png~2.png"],
        ["x/a.png", "y/a.png", "z/a.png", "z/a-png~3.gif"],
        ["a~2.png", "a.png"],
        ["Cat.png", "cat.jpg", "CAT.jpg"],
        ["before_after.png", "Before_After.jpg"],
    ],
)
def test_no_two_results_have_one_name_on_any_file_system(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path, *files)
    names = names_of([str(tmp_path / file) for file in files])
    assert len({name.casefold() for name in [*names, "before_after"]}) == len(files) + 1
    assert names == names_of([str(tmp_path / file) for file in files])


def test_naming_asks_for_no_more_names_the_more_there_are() -> None:
    """Numbers are not tried from the first one again."""

    class Counting(Counter[str]):
        asked = 0

        def __getitem__(self, key: str) -> int:
            self.asked += 1
            return super().__getitem__(key)

    used = Counting()
    names = [unique_name("cat", used) for _ in range(500)]
    assert len(set(names)) == 500
    assert used.asked < 10 * 500


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "trip [2024]/a.jpg", "trip [2024]/sub/b.jpg", "trip 2/c.jpg", "d.jpg")
    assert [path.name for path in find_images("trip [2024]/*.jpg")] == ["a.jpg"]
    assert [path.name for path in find_images(str(tmp_path / "trip [2024]" / "**" / "*.jpg"))] == ["a.jpg", "b.jpg"]
    assert [path.name for path in find_images("trip [0-9]/*.jpg")] == ["c.jpg"]
    assert find_images("*.jpg") == [Path("d.jpg")]


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.png", "photos/sub/b.png", "elsewhere/c.png", "elsewhere/.hidden/d.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos" / "sub")
    names = [path.relative_to(tmp_path / "photos").as_posix() for path in find_images(tmp_path / "photos")]
    assert names == ["a.png", "linked/c.png", "sub/b.png"]


def test_photographs_in_formats_that_are_not_read_are_counted_as_images_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "p/a.HEIC", "p/sub/b.heic", "p/c.NEF", "p/._d.heic")
    heic = "" if HAS_HEIC else r"2 \.heic"
    with pytest.raises(UserError, match=rf"no images in this folder \({heic}.*1 \.nef not read: .*TIFF"):
        find_images(tmp_path / "p") if not HAS_HEIC else find_images(touch(tmp_path, "q/c.NEF") / "q")
    with pytest.raises(UserError, match=r"not a readable image .*; convert raw files to TIFF"):
        read_image(tmp_path / "p" / "c.NEF")
    touch(tmp_path, "p/a.jpg")
    walk, walks = os.walk, []
    monkeypatch.setattr(os, "walk", lambda folder: walks.append(folder) or walk(folder))
    find_inputs(str(tmp_path / "p"), "out")
    assert "1 .nef not read" in capsys.readouterr().out
    assert walks == [tmp_path / "p"]


def test_names_never_leave_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path, "deep/er/a/x.png", "deep/er/b.png", "deep/c.png") / "deep" / "er")
    for pattern in ("*/../b.png", "*/../../c.png", "../er/a/*.png", "../*.png"):
        for name in names_of(pattern):
            assert ".." not in Path(name).parts
            assert not Path(name).is_absolute()


def test_a_file_without_an_extension_has_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "cat", "cat.png")
    assert names_of([str(tmp_path / "cat"), str(tmp_path / "cat.png")]) == ["cat", "cat-png"]


def test_what_is_too_long_for_a_path_is_not_there() -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_images("x" * 300)
