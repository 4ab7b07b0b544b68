"""WebDataset shards on this disk, read map-style by offset: exact, resumable order for any number of shards, workers and ranks.

A shard is a tar file whose members come in groups, "000042.png" and "000042.json" making sample 000042. Only the formats below
are read; nothing is unpickled, nothing runs a shell.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dds_train.data.paths import find_shards
from dds_train.data.source import Sample, image_size
from dds_train.data.tar_index import OpenFiles, ShardSample, scan_shard
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.errors import UserError
from dds_train.images.files import decode_image, square_crop

LATENT = "z.npy"
IMAGES = ("png", "jpg", "jpeg", "webp")
MANIFEST = "manifest.json"
TABLE = "prompts.safetensors"
FORMAT = 1  # of the manifest


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
    """Samples of WebDataset shards: latents (NAME.z.npy) if all samples have them, else images, cropped to `size`.

    Args:
        path: a folder of *.tar, a glob pattern, or a list of these.
        checkpoint: the teacher's; shards that `synthesize` made with another VAE or text encoder are refused.
        latents: whether to prefer latents over images.
        size: side of images in pixels; default: the teacher's.

    Raises:
        UserError: if there are no shards, or no images and latents in them.
    """

    def __init__(
        self, path: str | Sequence[str], checkpoint: DiffusionCheckpoint, latents: bool = True, size: int | None = None
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
        self.latents = latents and all(LATENT in sample.members for sample in self.samples)
        self.size = 0 if self.latents else image_size(checkpoint, size)

    def prepare(self) -> None:
        for note in self.notes:
            print(f"note: {note}", flush=True)
        if self.manifest and self.latents:
            self._check("vae")
        if self.manifest:
            self._check("text")

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each sample: NAME.json's "prompt", or NAME.txt.

        Raises:
            UserError: naming the first sample that has none.
        """
        dataset = self.dataset()
        return [dataset.caption(sample) for sample in self.samples]

    @property
    def prompts(self) -> PromptTable | None:
        """Embeddings of the prompts, if `synthesize` made the shards."""
        return PromptTable.load(self.shards[0].parent / TABLE) if self.manifest else None

    @property
    def preview(self) -> LinearPreview | None:
        """A preview of latents, if `synthesize` made the shards."""
        if not (self.manifest and self.latents):
            return None
        return LinearPreview(torch.tensor(self.manifest["colours"]), self.manifest["image"][-1] // self.manifest["latents"][-1])

    def dataset(self) -> "ShardDataset":
        return ShardDataset(self.samples, self.latents, self.size)

    def _check(self, part: str) -> None:
        assert self.manifest is not None
        made_by = self.manifest["teacher"]
        try:
            digest = self.checkpoint.digest(part)
        except UserError:
            return  # not on this disk, so there is nothing to compare with
        if made_by[part] != digest:
            name = {"vae": "VAE", "text": "text encoder"}[part]
            raise UserError(
                f"data.path={self.shards[0].parent}: made with another {name} (that of {made_by['path']}) than "
                f"teacher.path={self.checkpoint.path}; take that teacher, or synthesize the data set again"
            )


def read_shard_manifest(shards: Sequence[Path]) -> dict[str, Any] | None:
    """The manifest that `synthesize` wrote, if all shards are in one folder that has one.

    Raises:
        UserError: if it is damaged, or a shard's size differs from it.
    """
    folders = {shard.parent for shard in shards}
    path = next(iter(folders)) / MANIFEST
    if len(folders) > 1 or not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged; delete it and run the same synthesize command again, which writes it") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None  # of another program
    sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]}
    for shard in shards:
        size = shard.stat().st_size
        if sizes.get(shard.name, size) != size:
            raise UserError(
                f"{shard}: {size} bytes, {sizes[shard.name]} in its manifest; "
                "delete the shard and run the same synthesize command again, which makes what is missing"
            )
    return manifest


class ShardDataset(Dataset[Sample]):
    """Samples as tensors. Raises UserError for a damaged sample, StorageError if a shard cannot be read."""

    def __init__(self, samples: Sequence[ShardSample], latents: bool, size: int) -> None:
        self.samples, self.latents, self.size = samples, latents, size
        self._files = OpenFiles()

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.samples[index].name

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        caption = torch.tensor(index)
        if self.latents:
            content = self._read(sample, LATENT)
            try:
                return {"z": decode_latent(content), "caption": caption}
            except (ValueError, EOFError) as error:
                raise UserError(f"{sample.name}: {str(error).splitlines()[0]}") from error
        extension = next(extension for extension in IMAGES if extension in sample.members)
        image = decode_image(io.BytesIO(self._read(sample, extension)), sample.name, 4 * self.size)
        return {"image": square_crop(image, self.size), "caption": caption}

    def caption(self, sample: ShardSample) -> str:
        if "json" in sample.members:
            try:
                record = json.loads(self._read(sample, "json"))
            except ValueError as error:
                raise UserError(f"{sample.name}.json: not JSON ({error})") from error
            if isinstance(record, dict) and isinstance(record.get("prompt"), str):
                text: str = record["prompt"]
                return text
        if "txt" in sample.members:
            return " ".join(self._read(sample, "txt").decode(errors="replace").split())
        raise UserError(f"{sample.name}: no caption (.json with a prompt, or .txt), and a task has {{caption}} in its prompts")

    def _read(self, sample: ShardSample, extension: str) -> bytes:
        return self._files.read(sample.shard, *sample.members[extension])


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
