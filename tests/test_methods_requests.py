"""Edit requests: names, masks and batches."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dds_train.errors import UserError
from dds_train.images.edit_list import read_edit_list
from dds_train.images.mask_image import read_mask
from dds_train.methods.outcome import Outcome
from dds_train.methods.requests import Batch, EditRequest, group_edits, make_batches, plan_edits


def plan(image: Any, **keys: Any) -> list[EditRequest]:
    return plan_edits(image, **{"source": "a cat", "target": "a lion", "mask": None, "seed": 0, "output_dir": "out", **keys})


def made_batches(requests: list[EditRequest], batch_size: int) -> list[Batch]:
    return list(make_batches(group_edits(requests), batch_size, None, Outcome(stop=True)))


def test_csv_and_jsonl_say_the_same(image_folder: Path) -> None:
    (image_folder / "e.csv").write_text('image,target,mask,seed\na.png,"a dog, asleep",m.png,7\nb.png,,auto,\n')
    rows = [{"image": "a.png", "target": "a dog, asleep", "mask": "m.png", "seed": 7}, {"image": "b.png", "mask": "auto"}]
    (image_folder / "e.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_edit_list(image_folder / "e.csv") == read_edit_list(image_folder / "e.jsonl")
    first, second = plan(str(image_folder / "e.csv"), seed=3)
    assert first == EditRequest(
        "a-a-dog-asleep", image_folder / "a.png", "a cat", "a dog, asleep", str(image_folder / "m.png"), 7
    )
    assert second == EditRequest("b-a-lion", image_folder / "b.png", "a cat", "a lion", "auto", 3)


def test_prompts_take_the_captions_of_images(image_folder: Path) -> None:
    (image_folder / "a.txt").write_text("a gray cat, asleep")
    (image_folder / "metadata.csv").write_text("file_name,text\nb.png,a cat in a category\nc.png,a cat\n")
    captions = {"source": "{caption}", "target": "{caption} here", "swap": {"cat": "lion", "gray cat": "golden cat"}}
    files = [str(image_folder / name) for name in ("a.png", "b.png")]
    prompts = [("a gray cat, asleep", "a golden cat, asleep here"), ("a cat in a category", "a lion in a category here")]
    assert [(one.source, one.target) for one in plan(files, **captions)] == prompts
    table = image_folder / "e.csv"
    table.write_text("image,source,target,caption\na.png,,,a cat\nb.png,a dog,a bear,\nc.png,,{caption}!,\n")
    listed = [(one.source, one.target) for one in plan(str(table), **captions)]
    assert listed == [("a cat", "a lion here"), ("a dog", "a bear"), ("a cat", "a lion!")]


def test_captions_that_make_no_edit_are_named(image_folder: Path) -> None:
    (image_folder / "a.txt").write_text("a dog")
    captions = {"source": "{caption}", "target": "{caption}"}
    for swap, message in (({"cat": "lion"}, "'a dog' has none of the words of swap (cat)"), ({}, "needs words to swap")):
        with pytest.raises(UserError, match=re.escape(message)):
            plan(str(image_folder / "a.png"), **captions, swap=swap)
    with pytest.raises(UserError, match=r"b\.png: no caption, .* write b\.txt beside it"):
        plan(str(image_folder / "b.png"), **captions, swap={"cat": "lion"})


def test_names_tell_edits_apart(image_folder: Path) -> None:
    names = [edit.name for edit in plan(str(image_folder / "a.png"), target=["a lion", "a dog!"])]
    assert names == ["a-a-lion", "a-a-dog"]
    (image_folder / "e.csv").write_text("image,seed\na.png,1\na.png,2\n")
    assert [edit.name for edit in plan(str(image_folder / "e.csv"))] == ["a-a-lion", "a-a-lion~2"]
    assert [edit.name for edit in plan(str(image_folder / "a.png"))] == ["a"]


def test_batches_hold_images_of_one_size_and_share_inputs(image_folder: Path) -> None:
    requests = plan([str(image_folder / f"{n}.png") for n in "acb"], target=["a lion", "a dog"])
    made = made_batches(requests, 4)
    names = [[request.name for request in batch.requests] for batch in made]
    assert names == [["a-a-lion", "a-a-dog", "b-a-lion", "b-a-dog"], ["c-a-lion", "c-a-dog"]]
    assert [len(batch.requests) for batch in made_batches(requests, 1)] == [2, 2, 2]  # the edits of an image stay together
    batch = made[0]
    assert (batch.edits_each, len(batch.images), [request.name for request in batch.firsts]) == (2, 2, ["a-a-lion", "b-a-lion"])
    assert batch.keys == [request.digest() for request in batch.requests]


def test_edits_of_an_image_with_other_seeds_or_sources_do_not_share_a_batch(image_folder: Path) -> None:
    (image_folder / "e.csv").write_text("image,source,seed\na.png,x,1\na.png,y,1\na.png,y,2\n")
    (batch,) = made_batches(plan(str(image_folder / "e.csv")), 8)
    assert batch.edits_each == 1


def test_masks_of_many_images_come_from_a_folder(image_folder: Path) -> None:
    (image_folder / "masks").mkdir()
    (image_folder / "m.png").rename(image_folder / "masks" / "a.png")
    (edit,) = plan(str(image_folder / "a.png"), mask=str(image_folder / "masks"))
    assert edit.mask == str(image_folder / "masks" / "a.png")
    with pytest.raises(UserError, match=r"no mask named b\.\* "):
        plan(str(image_folder / "b.png"), mask=str(image_folder / "masks"))


def test_a_mask_is_white_where_to_edit_and_fits_the_image(image_folder: Path) -> None:
    mask = Image.new("L", (40, 20), 3)
    mask.paste(255, (20, 0, 40, 20))
    mask.save(image_folder / "m.png")
    read = read_mask(image_folder / "m.png", (10, 20))
    assert read.shape == (1, 10, 20)
    assert (read[..., :9] == 0).all()
    torch.testing.assert_close(read[..., 11:], torch.ones(1, 10, 9))
    with pytest.raises(UserError, match="a mask of 40 x 20 pixels for an image of 8 x 8"):
        read_mask(image_folder / "m.png", (8, 8))
    with pytest.raises(UserError, match="a mask of 40 x 20"):
        made_batches(plan(str(image_folder / "c.png"), mask=str(image_folder / "m.png")), 1)


def test_a_request_is_identified_by_what_its_files_hold(image_folder: Path) -> None:
    (first,) = plan(str(image_folder / "a.png"), mask=str(image_folder / "m.png"))
    known = first.digest()
    (image_folder / "m.png").rename(image_folder / "n.png")
    moved = replace(first, mask=str(image_folder / "n.png"))
    assert moved.digest() == known
    changes = ({"source": "x"}, {"target": "x"}, {"seed": 1}, {"mask": None}, {"mask": "auto"})
    assert len({known, *(replace(moved, **change).digest() for change in changes)}) == 6
    Image.new("L", (20, 10), 0).save(image_folder / "n.png")  # the same name, another mask
    assert moved.digest() != known
    Image.new("L", (20, 10), 255).save(image_folder / "n.png")
    assert moved.digest() == known
    Image.new("RGB", (20, 10), "blue").save(image_folder / "a.png")
    assert moved.digest() != known


def test_no_file_of_a_result_is_one_of_another(image_folder: Path) -> None:
    for name in ("a_steps", "a_mask", "a_before_after", "before_after"):
        Image.new("RGB", (8, 8)).save(image_folder / f"{name}.png")
    names = [edit.name for edit in plan(str(image_folder))]
    written = [f"{name}{part}".casefold() for name in names for part in ("", "_steps", "_mask", "_before_after")]
    assert len(set(written) | {"before_after"}) == len(written) + 1


def test_names_fit_a_file_system_with_all_their_endings(image_folder: Path) -> None:
    long = image_folder / f"{'é' * 123}.png"
    Image.new("RGB", (8, 8)).save(long)
    names = [edit.name for edit in plan(str(long), target=["a lion " * 20, "a lion " * 21, "a dog"])]
    assert len(set(names)) == 3
    assert all(len(f"{name}_before_after.png".encode()) <= 250 for name in names)
