"""Names of files, whoever chose them."""

from pathlib import Path

import pytest

from dds_train.runs.files import relative_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("sub/ünïcode 猫.png", "sub/ünïcode 猫.png"),
        ("../../x", "x"),
        ("/etc/x", "etc/x"),
        ("a/../../b/./c", "a/b/c"),
        ("..", "_"),
        ("", "_"),
        ("a\0b\n", "a_b_"),
        ("\ud83dx", "_x"),  # half a character, as JSON can have
        ("caf\udce9", "caf\udce9"),  # a file name that is not UTF-8
    ],
)
def test_names_stay_inside(name: str, expected: str) -> None:
    assert relative_name(name) == expected


def test_long_names_are_cut_and_stay_different(tmp_path: Path) -> None:
    names = [
        relative_name(f"{letter * 300}/{'é' * length}.png", "_before_after.png") for letter in "ab" for length in (199, 200)
    ]
    assert len(set(names)) == 4
    for name in names:
        path = tmp_path / f"{name}_before_after.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert name.endswith(".png")
        assert all(len(part.encode()) <= 250 for part in path.relative_to(tmp_path).parts)
