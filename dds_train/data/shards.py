"""WebDataset shards on this disk, read map-style by offset: exact, resumable order for any number of shards, workers and ranks.

A shard is a tar file whose members come in groups, "000042.png" and "000042.json" making sample 000042. Only the formats below
are read; nothing is unpickled, nothing runs a shell.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dds_train.data.buckets import Shape, bucket_shapes, bucketed
from dds_train.data.paths import find_shards
from dds_train.data.source import Sample, StorageError, image_size
from dds_train.data.tar_index import OpenFiles, ShardSample, scan_shard
from dds_train.diffusion import DiffusionCheckpoint, PromptFile
from dds_train.errors import UserError, first_line
from dds_train.images.files import centre_crop, decode_image, upright_size

LATENT = "z.npy"
IMAGES = ("png", "jpg", "jpeg", "webp")
MANIFEST = "manifest.json"
TABLE = "prompts.sqlite"
FORMAT = 2  # of the manifest
CAPTIONS = ("prompt", "caption", "text")  # keys of a .json
HEADER = 2**16  # bytes of an image in which its size usually is
LOOKED_AT = 32  # latents whose most common shape is that of the data set


@dataclass(frozen=True)
class LinearPreview:
    """Approximate images of latents without a VAE: a linear map from the channels of a latent pixel to a colour."""

    colours: Tensor  # [C+1,3]
    factor: int  # pixels per latent

    def __call__(self, z: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,3,h*f,w*f] in [-1,1], on the CPU."""
        z = z.detach().float().cpu()
        flat = torch.cat([z, torch.ones_like(z[:, :1])], 1).permute(0, 2, 3, 1)
        small = (flat @ self.colours).permute(0, 3, 1, 2).clamp(-1, 1)
        return F.interpolate(small, scale_factor=self.factor, mode="bicubic").clamp(-1, 1)


class ShardSource:
    """Samples of WebDataset shards: latents (NAME.z.npy) if most samples have them, else images, cropped to `size`.

    Samples without what the others have, and those lost where a shard is damaged, are in the data set as bad ones.

    Args:
        path: a folder of *.tar, a glob pattern, or a list of these.
        checkpoint: the teacher's; shards that `synthesize` made with another VAE or text encoder are refused.
        latents: whether to prefer latents over images.
        size: side of images in pixels; default: the teacher's.
        buckets: whether images keep about their own aspect (`data.buckets`).

    Raises:
        UserError: if there are no shards, or no images and latents in them; for latents in buckets.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        checkpoint: DiffusionCheckpoint,
        latents: bool = True,
        size: int | None = None,
        buckets: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        specs = [path] if isinstance(path, str) else path
        self.shards = list(dict.fromkeys(shard for spec in specs for shard in find_shards(spec)))
        self.manifest = read_shard_manifest(self.shards)
        scanned = [scan_shard(shard) for shard in self.shards]
        self.notes = [note for _, note in scanned if note]
        extensions = {LATENT, *IMAGES} if latents else set(IMAGES)
        self.samples = [sample for samples, _ in scanned for sample in samples if extensions & set(sample.members)]
        if not self.samples:
            reason = "; ".join(self.notes) or f"looked for .{LATENT} and .{', .'.join(IMAGES)}"
            raise UserError(f"data.path={path}: no samples in these shards ({reason})")
        with_latents = sum(LATENT in sample.members for sample in self.samples)
        self.latents = latents and 2 * with_latents > len(self.samples)
        if latents and 0 < with_latents < len(self.samples):
            remedy = "and are left out; data.latents=false trains on images" if self.latents else "so images are trained on"
            self.notes.append(f"{len(self.samples) - with_latents} of {len(self.samples)} samples have no .{LATENT}, {remedy}")
        if self.latents and buckets:
            raise UserError("data.buckets=true: needs images, and these shards have latents; take data.latents=false")
        self.size = 0 if self.latents else image_size(checkpoint, size)
        self.shapes = bucket_shapes(self.size, checkpoint.image_unit()) if buckets else []
        # A damaged shard is taken to have had as many samples as the largest of the others.
        usual = max((len(samples) for samples, note in scanned if not note), default=0)
        self.lost = [
            f"{shard.name}, sample {number + 1}: lost ({note})"
            for shard, (samples, note) in zip(self.shards, scanned, strict=True)
            for number in range(len(samples), max(usual, len(samples) + 1) if note else 0)
        ]
        self._without_caption: dict[int, str] = {}  # index -> why; filled by `captions`

    def prepare(self) -> None:
        for note in self.notes:
            print(f"note: {note}", flush=True)
        if self.manifest and self.latents:
            self._check("vae")
        if self.manifest:
            self._check("text")

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each sample: the prompt or caption of NAME.json, or NAME.txt. A sample without becomes a bad one.

        Raises:
            UserError: if no sample has one.
        """
        dataset, captions = self._samples(), []
        for index, sample in enumerate(self.samples):
            try:
                captions.append(dataset.caption(sample))
            except StorageError:
                raise
            except UserError as error:
                captions.append("")
                self._without_caption[index] = str(error)
        if len(self._without_caption) == len(captions):
            raise UserError(self._without_caption[0])
        return captions

    @property
    def prompts(self) -> PromptFile | None:
        """Embeddings of the prompts, if `synthesize` made the shards."""
        path = self.shards[0].parent / TABLE
        return PromptFile(path) if self.manifest and path.exists() else None

    @property
    def preview(self) -> LinearPreview | None:
        """A preview of latents, if `synthesize` made the shards."""
        if not (self.manifest and self.latents):
            return None
        return LinearPreview(torch.tensor(self.manifest["colours"]), self.manifest["image"][-1] // self.manifest["latents"][-1])

    def dataset(self) -> Dataset[Sample]:
        squares = self._samples()
        return bucketed(squares, self.shapes) if self.shapes else squares

    def _samples(self) -> "ShardDataset":
        return ShardDataset(self.samples, self.latents, self.size, self._latent_shape, self.lost, self._without_caption)

    @cached_property
    def _latent_shape(self) -> tuple[int, ...] | None:
        if self.manifest:
            return tuple(self.manifest["latents"])
        dataset, shapes = ShardDataset(self.samples, True, 0), Counter[tuple[int, ...]]()
        for index in range(0, len(self.samples), -(-len(self.samples) // LOOKED_AT)) if self.latents else ():
            with contextlib.suppress(UserError):
                shapes[tuple(dataset[index]["z"].shape)] += 1
        return shapes.most_common(1)[0][0] if shapes else None

    def _check(self, part: str) -> None:
        assert self.manifest is not None
        made_by = self.manifest["teacher"]
        try:
            digest = self.checkpoint.digest(part, up_to_half=True)
        except UserError:
            return  # not on this disk, so there is nothing to compare with
        if made_by[part] != digest:
            name = {"vae": "VAE", "text": "text encoder or teacher.max_tokens"}[part]
            raise UserError(
                f"data.path={self.shards[0].parent}: made with another {name} (that of {made_by['path']}) than "
                f"teacher.path={self.checkpoint.path}; take that teacher, or synthesize the data set again"
            )


def read_shard_manifest(shards: Sequence[Path]) -> dict[str, Any] | None:
    """The manifest that `synthesize` wrote, if all shards are in one folder that has one.

    Raises:
        UserError: as `read_manifest`, or if a shard's size differs from it.
    """
    folders = {shard.parent for shard in shards}
    manifest = read_manifest(next(iter(folders)) / MANIFEST) if len(folders) == 1 else None
    sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]} if manifest else {}
    for shard in shards:
        size = shard.stat().st_size
        if sizes.get(shard.name, size) != size:
            raise UserError(
                f"{shard}: {size} bytes, {sizes[shard.name]} in its manifest; "
                "delete the shard and run the same synthesize command again, which makes what is missing"
            )
    return manifest


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest of `synthesize`; None if there is none, or it is another program's.

    Raises:
        UserError: if it is damaged, or of an unknown format.
    """
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or "format" not in manifest:
            return None
        if manifest["format"] == FORMAT:
            return {key: manifest[key] for key in ("samples", "shards", "teacher", "latents", "image", "colours")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; delete it and run the same synthesize command again, which writes it") from error
    if manifest["format"] == 1:
        raise UserError(f"{path}: written by an older dds_train; synthesize the data set again, into another folder")
    raise UserError(
        f"{path}: of format {manifest['format']!r}, this dds_train reads {FORMAT}; "
        "upgrade dds_train, or delete the file if it is another program's"
    )


class ShardDataset(Dataset[Sample]):
    """Samples as tensors. Raises UserError for a damaged sample, StorageError if a shard cannot be read.

    Args:
        shape: of all latents; others are damaged. None for any.
        lost: reasons for samples that are in no shard any more, after the others.
        bad: index -> reason, of samples that cannot be used; may grow until the data set is read.
    """

    def __init__(
        self,
        samples: Sequence[ShardSample],
        latents: bool,
        size: int,
        shape: tuple[int, ...] | None = None,
        lost: Sequence[str] = (),
        bad: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.samples, self.latents, self.size, self.shape, self.lost, self.bad = samples, latents, size, shape, lost, bad
        self._files = OpenFiles()

    def __len__(self) -> int:
        return len(self.samples) + len(self.lost)

    def name(self, index: int) -> str:
        return self.samples[index].name

    def __getitem__(self, index: int) -> Sample:
        return self.shaped(index, (self.size, self.size))

    def original_shape(self, index: int) -> Shape:
        sample, extension = self._usable(index), self._image_of(index)
        try:
            return upright_size(io.BytesIO(self._read(sample, extension, HEADER)), sample.name)
        except StorageError:
            raise
        except UserError:
            return upright_size(io.BytesIO(self._read(sample, extension)), sample.name)

    def _usable(self, index: int) -> ShardSample:
        if index >= len(self.samples):
            raise UserError(self.lost[index - len(self.samples)])
        if index in self.bad:
            raise UserError(self.bad[index])
        return self.samples[index]

    def _image_of(self, index: int) -> str:
        return next((extension for extension in IMAGES if extension in self.samples[index].members), IMAGES[0])

    def shaped(self, index: int, shape: Shape) -> Sample:
        """The sample, its image in this shape."""
        sample = self._usable(index)
        caption = torch.tensor(index)
        if self.latents:
            content = self._read(sample, LATENT)
            try:
                z = decode_latent(content)
            except (ValueError, EOFError) as error:
                raise UserError(f"{sample.name}: {first_line(error)}") from error
            if z.shape != (self.shape or z.shape):
                raise UserError(f"{sample.name}: a latent of shape {list(z.shape)}, most have {list(self.shape or ())}")
            return {"z": z, "caption": caption}
        image = decode_image(io.BytesIO(self._read(sample, self._image_of(index))), sample.name, 4 * self.size)
        return {"image": centre_crop(image, *shape), "caption": caption}

    def caption(self, sample: ShardSample) -> str:
        """Raises UserError if there is none that can be read."""
        problem = "no caption (.json with a prompt or caption, or .txt)"
        for extension, read in (("json", caption_of_json), ("txt", caption_of_text)):
            if extension in sample.members:
                try:
                    if text := read(self._read(sample, extension)):
                        return text
                except StorageError:
                    raise
                except (ValueError, RecursionError) as error:
                    problem = f"no caption: .{extension} cannot be read ({first_line(error)})"
        raise UserError(f"{sample.name}: {problem}, and a task has {{caption}} in its prompts")

    def _read(self, sample: ShardSample, extension: str, limit: int | None = None) -> bytes:
        if extension not in sample.members:
            raise UserError(f"{sample.name}: has no .{extension}")
        start, size = sample.members[extension]
        return self._files.read(sample.shard, start, size if limit is None else min(size, limit))


def caption_of_json(content: bytes) -> str:
    """A text under one of the keys `CAPTIONS`, or the first of a list there; empty if there is none.

    Raises:
        ValueError, RecursionError: if it is not JSON, or no text that UTF-8 can write.
    """
    record = json.loads(content)
    values = [record.get(key) for key in CAPTIONS] if isinstance(record, dict) else [record]
    texts = [one for value in values for one in (value if isinstance(value, list) else [value])]
    text: str = next((one for one in texts if isinstance(one, str) and one.strip()), "")
    text.encode()
    return text


def caption_of_text(content: bytes) -> str:
    """Raises ValueError if it is not UTF-8."""
    return " ".join(content.decode("utf-8-sig").split())


def decode_latent(content: bytes) -> Tensor:
    """The latent [C,h,w] of a .npy file; nothing in it is unpickled.

    Raises:
        ValueError, EOFError: if there is none.
    """
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except MemoryError as error:  # a damaged header, with a shape of any size
        raise ValueError("a damaged .npy file") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError("a latent must be a floating-point array [C,h,w]")
    return torch.from_numpy(array.astype(np.float32))
