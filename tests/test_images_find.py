"""Image files by path, folder and pattern, and the names of their results."""

import time
from pathlib import Path

import pytest

from dds_train.errors import UserError
from dds_train.images.find import find_images, find_inputs


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(spec: str | list[str], output_dir: str = "out") -> list[str]:
    return [name for name, _ in find_inputs(spec, output_dir)]


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


def test_naming_is_linear_in_the_number_of_files(tmp_path: Path) -> None:
    """Four times the files take about four times as long; 16 times if a file is compared with every other."""
    folder = touch(tmp_path, *(f"{kind}/{i:04d}.{kind}" for i in range(500) for kind in ("png", "jpg")))
    more = touch(tmp_path / "more", *(f"{kind}/{i:04d}.{kind}" for i in range(2000) for kind in ("png", "jpg")))

    def seconds(where: Path) -> float:
        def once() -> float:
            began = time.perf_counter()
            assert len(set(names_of([f"{where}/png", f"{where}/jpg"]))) == len(list(where.glob("*/*.*g")))
            return time.perf_counter() - began

        return min(once() for _ in range(3))

    assert seconds(more) < 8 * seconds(folder)
