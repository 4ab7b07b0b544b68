"""Shard files of a path."""

from pathlib import Path

import pytest

from dds_train.data.paths import find_shards
from dds_train.errors import UserError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(13):
        (tmp_path / f"s-{number:03d}.tar").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("s-{000..012}.tar", range(13)),
        ("s-{009..011}.tar", range(9, 12)),
        ("s-00{1,3}.tar", (1, 3)),
        ("s-{000..012}*", range(13)),
        ("s-00[1-3].tar", (1, 2, 3)),
        ("", range(13)),
    ],
)
def test_ranges_patterns_and_folders(shards: Path, spec: str, numbers: range) -> None:
    assert find_shards(shards / spec) == [shards / f"s-{number:03d}.tar" for number in numbers]


def test_a_range_with_a_gap_is_refused(shards: Path) -> None:
    (shards / "s-005.tar").unlink()
    with pytest.raises(UserError, match=r"^data\.path=.*s-\{000\.\.012\}\.tar: no file .*s-005\.tar$"):
        find_shards(shards / "s-{000..012}.tar")


@pytest.mark.parametrize("name", ["a{b}.tar", "a{0..2}.tar", "a{.tar", "[2024].tar"])
def test_a_file_of_that_name_is_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert find_shards(tmp_path / name) == [tmp_path / name]


@pytest.mark.parametrize("spec", ["a{.tar", "none", "none.tar", "*.tar", "a}b", "{0..2}.tar"])
def test_what_is_not_there_is_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UserError, match=r"data\.path="):
        find_shards(tmp_path / spec)
