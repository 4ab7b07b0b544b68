"""WebDataset shards on this disk, read by offset: any sample at any time, without unpacking and without running anything.

A shard is a tar file whose members come in groups, "000042.png" and "000042.json" making sample 000042. Reading them map-style,
instead of streaming, makes the order exact and resumable whatever the number of workers, ranks and shards: a single shard
serves any number of both. The formats that are read are the ones below; nothing is unpickled, nothing runs a shell.
"""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dds_train.data.paths import find_shards
from dds_train.data.source import Sample, image_size
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.errors import UserError
from dds_train.images.files import checked_image, square_crop

LATENT = "z.npy"
IMAGES = ("png", "jpg", "jpeg", "webp")
MANIFEST = "manifest.json"
TABLE = "prompts.safetensors"


@dataclass
class ShardSample:
    """Where the members of one sample are: extension -> (offset, bytes)."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.shard.name}/{self.key}"


def scan_shard(shard: Path) -> tuple[list[ShardSample], str | None]:
    """The samples of a tar file, and what is wrong with its end, if anything: a truncated one yields what is whole."""
    entries: dict[str, ShardSample] = {}
    problem, size, end = None, shard.stat().st_size, 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not extension:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                key = f"{folder}/{stem}" if folder else stem
                entries.setdefault(key, ShardSample(shard, key)).members[extension.lower()] = (member.offset_data, member.size)
        if size < end + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, OSError) as error:
        problem = f"{shard}: damaged after {len(entries)} samples ({error})"
    return list(entries.values()), problem


@dataclass(frozen=True)
class LinearPreview:
    """What latents look like, as the colours that a linear map gives each of their places."""

    colours: Tensor  # [C+1,3]
    factor: int  # pixels per latent

    def __call__(self, z: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,3,h*f,w*f] in [-1,1], on the CPU."""
        z = z.detach().float().cpu()
        flat = torch.cat([z, torch.ones_like(z[:, :1])], 1).permute(0, 2, 3, 1)
        small = (flat @ self.colours).permute(0, 3, 1, 2).clamp(-1, 1)
        return F.interpolate(small, scale_factor=self.factor, mode="bicubic").clamp(-1, 1)


class ShardSource:
    """The samples of WebDataset shards: latents (NAME.z.npy) where all have them, else images, cropped to `size`.

    Args:
        path: a folder of *.tar, a glob pattern, or a list of these.
        pretrained: the teacher; shards that `synthesize` made with another codec are refused.
        latents: take latents where they are.
        size: side of images in pixels; the teacher's own if not given.

    Raises:
        UserError: if there are no shards, they hold neither images nor latents, or another codec made them.
    """

    def __init__(
        self, path: str | Sequence[str], checkpoint: DiffusionCheckpoint, latents: bool = True, size: int | None = None
    ) -> None:
        self.checkpoint = checkpoint
        specs = [path] if isinstance(path, str) else path
        self.shards = list(dict.fromkeys(shard for spec in specs for shard in find_shards(spec)))
        self.manifest = read_shard_manifest(self.shards)
        scanned = [scan_shard(shard) for shard in self.shards]
        self.problems = [problem for _, problem in scanned if problem]
        wanted = {LATENT, *IMAGES} if latents else set(IMAGES)
        self.entries = [e for entries, _ in scanned for e in entries if wanted & set(e.members)]
        if not self.entries:
            what = "; ".join(self.problems) or f"looked for .{LATENT} and .{', .'.join(IMAGES)}"
            raise UserError(f"data.path={path}: no samples in these shards ({what})")
        self.latents = latents and all(LATENT in entry.members for entry in self.entries)
        self.size = 0 if self.latents else image_size(checkpoint, size)

    def prepare(self) -> None:
        for problem in self.problems:
            print(f"note: {problem}", flush=True)
        if self.manifest and self.latents:
            self._check("vae", "vae")
        if self.manifest:
            self._check("text_encoder", "tokenizer", "text_encoder")

    @cached_property
    def captions(self) -> list[str]:
        """The prompt of each sample (NAME.json's "prompt", or NAME.txt).

        Raises:
            UserError: naming the first sample that has none.
        """
        reader = _Shards(self.entries, self.latents, self.size)
        return [reader.caption(entry) for entry in self.entries]

    @property
    def prompts(self) -> PromptTable | None:
        """The table beside the shards."""
        return PromptTable.load(self.shards[0].parent / TABLE) if self.manifest else None

    @property
    def preview(self) -> LinearPreview | None:
        """Pictures of latents, roughly, without a codec."""
        if not (self.manifest and self.latents):
            return None
        return LinearPreview(torch.tensor(self.manifest["colours"]), self.manifest["image"][-1] // self.manifest["latents"][-1])

    def dataset(self) -> Dataset[Sample]:
        return _Shards(self.entries, self.latents, self.size)

    def _check(self, name: str, *parts: str) -> None:
        assert self.manifest is not None
        made_by = self.manifest["teacher"]
        try:
            known = self.checkpoint.fingerprint(*parts)
        except UserError:
            return  # not on this disk, so not to be mistaken for another either
        if made_by[name] != known:
            raise UserError(
                f"data.path={self.shards[0].parent}: made with another {name} (that of {made_by['path']}) than "
                f"teacher.path={self.checkpoint.path}; take that teacher, or synthesize anew"
            )


def read_shard_manifest(shards: Sequence[Path]) -> dict[str, Any] | None:
    """What `synthesize` wrote beside the shards, if all lie in one folder and it did.

    Raises:
        UserError: if a shard's size is not what the manifest says.
    """
    folders = {shard.parent for shard in shards}
    path = next(iter(folders)) / MANIFEST
    if len(folders) > 1 or not path.exists():
        return None
    manifest = json.loads(path.read_text())
    sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
    for shard in shards:
        if sizes.get(shard.name, shard.stat().st_size) != shard.stat().st_size:
            raise UserError(
                f"{shard}: {shard.stat().st_size} bytes, its manifest says {sizes[shard.name]}; "
                "delete it and run the same synthesize command again, which draws what is missing"
            )
    return manifest


class _Shards(Dataset[Sample]):
    def __init__(self, entries: Sequence[ShardSample], latents: bool, size: int) -> None:
        self.entries, self.latents, self.size = entries, latents, size
        self._open: dict[tuple[int, Path], int] = {}  # (process, shard) -> file descriptor

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        caption = torch.tensor(index)
        try:
            if self.latents:
                return {"z": read_latent(self._bytes(entry, LATENT)), "caption": caption}
            extension = next(e for e in IMAGES if e in entry.members)
            image = checked_image(io.BytesIO(self._bytes(entry, extension)), entry.name)
        except UserError:
            raise
        except (OSError, ValueError, EOFError, Image.UnidentifiedImageError) as error:
            raise UserError(f"{entry.name}: {str(error).splitlines()[0]}") from error
        return {"image": square_crop(image, self.size), "caption": caption}

    def caption(self, entry: ShardSample) -> str:
        if "json" in entry.members:
            prompt = json.loads(self._bytes(entry, "json")).get("prompt")
            if isinstance(prompt, str):
                return prompt
        if "txt" in entry.members:
            return " ".join(self._bytes(entry, "txt").decode(errors="replace").split())
        raise UserError(f"{entry.name}: has no caption (.json with a prompt, or .txt), and a task says {{caption}}")

    def _bytes(self, entry: ShardSample, extension: str) -> bytes:
        # Descriptors belong to one process: workers that were forked open their own.
        key = (os.getpid(), entry.shard)
        if key not in self._open:
            self._open[key] = os.open(entry.shard, os.O_RDONLY)
        offset, size = entry.members[extension]
        return os.pread(self._open[key], size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def read_latent(content: bytes) -> Tensor:
    """A .npy file's [C,h,w]; nothing in it is unpickled."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"a latent must be floating-point [C,h,w], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array.astype(np.float32))
