"""Folders of images and their captions."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from dds_train.data.folder import FolderSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


def test_captions_of_a_folder(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a gray cat\n")
    (tmp_path / "metadata.csv").write_text('file_name,text\nb.png,"a cat, asleep"\nc.png,a black cat\n')
    assert FolderSource(str(tmp_path), checkpoint).captions == ["a gray cat", "a cat, asleep", "a black cat"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,x\n")
    with pytest.raises(UserError, match=r"c\.png: no caption"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    (tmp_path / "metadata.csv").write_text("name,words\n")
    with pytest.raises(UserError, match="columns file_name and text"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    with pytest.raises(UserError, match=r"data\.size=30"):
        FolderSource(str(tmp_path), checkpoint, size=30)


def test_home_folder_and_byte_order_mark_in_metadata(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (8, 8)).save(photos / name)
    (photos / "metadata.csv").write_text("file_name,text\n~/photos/a.png,one\n./sub/b.png,two\n", encoding="utf-8-sig")
    for path, captions in (("~/photos", ["one", "two"]), ("~/photos/*.png", ["one"]), (str(photos), ["one", "two"])):
        assert FolderSource(path, checkpoint).captions == captions
    (photos / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\n")
    with pytest.raises(UserError, match=r"metadata\.csv: line 2: cannot be read as UTF-8"):
        _ = FolderSource("~/photos", checkpoint).captions


def test_captions_of_the_imagefolder_layout(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    for name in ("a.png", "train/b.png", "train/c.png", "d.png", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("\ufeffFile_Name;Text\na.png;a cat, asleep\n", encoding="utf-8")
    lines = [{"file_name": "b.png", "caption": "a gray cat", "label": 3}, {"file_name": "c.png", "caption": "a black cat"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "d.caption").write_text("a red cat", encoding="utf-8-sig")
    (tmp_path / "e.TXT").write_text("a white\ncat")
    expected = ["a cat, asleep", "a red cat", "a white cat", "a gray cat", "a black cat"]
    assert FolderSource(str(tmp_path), checkpoint).captions == expected


def test_empty_and_unreadable_captions_are_named(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for content, says in (
        (b" \n", r"a\.png: an empty caption in .*a\.txt"),
        (b"caf\xe9", r"a\.txt: line 1: cannot be read as UTF-8"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(UserError, match=says):
            _ = FolderSource(str(tmp_path), checkpoint).captions
    (tmp_path / "a.txt").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,\nb.png,x\n")
    with pytest.raises(UserError, match=r"a\.png: an empty caption in metadata"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    (tmp_path / "metadata.csv").write_text("file_name,text,text\na.png,x,y\n")
    with pytest.raises(UserError, match="the column text is there twice"):
        _ = FolderSource(str(tmp_path), checkpoint).captions


def test_a_captioner_describes_images_without_a_caption(
    image_folder: Path, checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BLIP with random weights, whose words are compared with its own greedy ones."""
    monkeypatch.setenv("DDS_CACHE", str(tmp_path / "cache"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *"abcdefghij"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "bos_token_id": 5, "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config={**text, "encoder_hidden_size": 16}, vision_config=vision)
    ).eval()
    processor = BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), BertTokenizer(str(tmp_path / "vocab.txt")))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "blip")
    (image_folder / "a.txt").write_text("my cat")
    (image_folder / "m.png").unlink()

    source = FolderSource(str(image_folder), checkpoint, captioner=str(tmp_path / "blip"))
    inputs = processor(images=[Image.open(image_folder / "c.png").convert("RGB")], return_tensors="pt")
    own_words = processor.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    assert source.captions[::2] == ["my cat", own_words]
    shutil.rmtree(tmp_path / "blip")
    assert source.captions[::2] == ["my cat", own_words]  # from the cache
    Image.new("RGB", (9, 9), "blue").save(image_folder / "d.png")
    with pytest.raises(UserError, match=r"data.captioner=.*blip: not a captioning model that can be loaded"):
        _ = FolderSource(str(image_folder), checkpoint, captioner=str(tmp_path / "blip")).captions
