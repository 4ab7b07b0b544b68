"""WebDataset shards, read map-style by offset: exact, resumable order for any number of shards, workers and ranks.

A shard is a tar file whose members come in groups, "000042.png" and "000042.json" making sample 000042. Only the formats below
are read; nothing is unpickled, nothing runs a shell. Shards behind URLs are fetched into a cache as they are needed.
"""

import contextlib
import io
import json
import sys
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from tqdm import tqdm

from dds_train.data.buckets import Shape, bucket_shapes, bucketed
from dds_train.data.kept_index import Indexed, index_local, index_remote, kept_captions
from dds_train.data.order import GROUPS_IN_CACHE, ShardOrder
from dds_train.data.paths import find_shards, find_urls, is_url
from dds_train.data.remote_files import GIB, FileCache, LostFile, RemoteShard
from dds_train.data.source import Sample, StorageError, image_size
from dds_train.data.tar_index import IMAGES, LATENT, OpenFiles, SampleSequence, Shard, ShardIndex, ShardSample
from dds_train.diffusion import DiffusionCheckpoint, PromptFile
from dds_train.errors import UserError, first_line
from dds_train.images.files import centre_crop, decode_image, upright_size
from dds_train.runs.digest import cache_folder, digest

MANIFEST = "manifest.json"
TABLE = "prompts.sqlite"
FORMAT = 2  # of the manifest
CAPTIONS = ("prompt", "caption", "text")  # keys of a .json
HEADER = 2**16  # bytes of an image in which its size usually is
LOOKED_AT = 32  # latents whose most common shape is that of the data set
CONNECTIONS = 8  # to servers, while shards are looked up


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
        path: a folder of *.tar, a glob pattern, a range such as DIR/{000..012}.tar, a URL of any of these, or a list of them.
        checkpoint: the teacher's; shards that `synthesize` made with another VAE or text encoder are refused.
        latents: whether to prefer latents over images.
        size: side of images in pixels; default: the teacher's.
        cache_dir: folder for remote shards and for indexes; default: $DDS_CACHE or ~/.cache/dds_train.
        cache_gb: GiB of remote shards in that folder.
        buckets: whether images keep about their own aspect (`data.buckets`).

    Raises:
        UserError: if there are no shards, or no images and latents in them, or the cache is too small for them; for latents
            in buckets.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        checkpoint: DiffusionCheckpoint,
        latents: bool = True,
        size: int | None = None,
        cache_dir: str | None = None,
        cache_gb: float = 50,
        buckets: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        specs = [path] if isinstance(path, str) else list(path)
        is_remote, self._folder = any(is_url(spec) for spec in specs), None
        with contextlib.nullcontext() if is_remote else contextlib.suppress(UserError):  # no home folder
            self._folder = (Path(cache_dir).expanduser() if cache_dir else cache_folder()) / "shards"
        self._cache = FileCache(self._folder, int(cache_gb * GIB)) if is_remote and self._folder else None
        if self._cache:
            self._cache.prepare()
        try:
            found = list(dict.fromkeys(shard for spec in specs for shard in self._find(spec)))
            folders = {str(one.parent) if isinstance(one, Path) else one.rpartition("/")[0] for one in found}
            self.folder = folders.pop() if len(folders) == 1 else None  # of all shards: a path or URL
            manifest = self._beside(MANIFEST)
        except LostFile as error:
            raise UserError(f"data.path={path}: {error}; check address and network, and run the same command again") from error
        self.manifest = read_manifest(manifest) if manifest else None
        scanned = list(self._scan(found))
        self.shards = [index.shard for index, _ in scanned]
        check_sizes(self.shards, self.manifest)
        self.notes = [note for _, note in scanned if note]
        extensions = {LATENT, *IMAGES} if latents else set(IMAGES)
        self.samples = ShardSamples([index.with_any(extensions) for index, _ in scanned])
        if not self.samples:
            reason = "; ".join(self.notes) or f"looked for .{LATENT} and .{', .'.join(IMAGES)}"
            raise UserError(f"data.path={path}: no samples in these shards ({reason})")
        self.order = shard_order(self.samples, self._cache.limit) if self._cache else None
        with_latents = sum(int(index.has(LATENT).sum()) for index in self.samples.indexes)
        self.latents = latents and 2 * with_latents > len(self.samples)
        if latents and 0 < with_latents < len(self.samples):
            remedy = "and are left out; data.latents=false trains on images" if self.latents else "so images are trained on"
            self.notes.append(f"{len(self.samples) - with_latents} of {len(self.samples)} samples have no .{LATENT}, {remedy}")
        if self.latents and buckets:
            raise UserError("data.buckets=true: needs images, and these shards have latents; take data.latents=false")
        if self.order and not self.order.fits and buckets:
            raise UserError(
                f"data.buckets=true: reads shards in any order, and these do not fit data.cache_gb={cache_gb:g}; raise that"
            )
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

    def _find(self, spec: str) -> list[Path] | list[str]:
        """Paths of shards, or their URLs."""
        if not is_url(spec):
            return find_shards(spec)
        assert self._cache is not None
        urls = find_urls(spec)
        for pattern in [url for url in urls if not url.partition("?")[0].endswith(".tar") or "*" in url or "[" in url]:
            urls.remove(pattern)
            urls += self._cache.glob(pattern if "*" in pattern or "[" in pattern else f"{pattern.rstrip('/')}/*.tar")
        if not urls:
            raise UserError(f"data.path={spec}: no shards (*.tar) there")
        return sorted(urls)

    def _beside(self, name: str) -> Path | None:
        """A file in the folder of all shards, if there is one.

        Raises:
            LostFile: if the server does not tell.
        """
        if self.folder is None:
            return None
        if not is_url(self.folder):
            return path if (path := Path(self.folder, name)).exists() else None
        assert self._cache is not None
        kept = FileCache(self._cache.folder / "beside", sys.maxsize)  # where it does not make room for shards
        kept.prepare()
        try:
            return kept.fetch(kept.locate(f"{self.folder}/{name}"))
        except LostFile as error:
            if error.final:
                return None
            raise

    def _scan(self, found: Sequence[Path | str]) -> Iterator[Indexed]:
        """Indexes of all shards, in order."""

        def scan(one: Path | str) -> Indexed:
            if isinstance(one, Path):
                return index_local(one, self._folder)
            assert self._cache is not None
            return index_remote(one, self._cache, beside=self.manifest is not None)

        bar = {"total": len(found), "desc": "look up shards", "unit": "shard", "delay": 5}
        if self._cache:
            with ThreadPoolExecutor(CONNECTIONS) as threads:
                yield from tqdm(threads.map(scan, found), **bar)
        else:
            yield from tqdm(map(scan, found), **bar)

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
        captions: list[str] = []
        for index in self.samples.indexes:
            for caption, problem in self._captions_of(index):
                if problem:
                    self._without_caption[len(captions)] = problem
                captions.append(sys.intern(caption))  # often the same
        if len(self._without_caption) == len(captions):
            raise UserError(self._without_caption[0])
        return captions

    def _captions_of(self, index: ShardIndex) -> list[list[str]]:
        """The caption of each sample, or why there is none."""
        dataset = self._squares()

        def read() -> list[list[str]]:
            found = []
            for sample in index:
                try:
                    found.append([dataset.caption(sample), ""])
                except (StorageError, LostFile):
                    raise
                except UserError as error:
                    found.append(["", str(error)])
            return found

        try:
            return kept_captions(index, self._folder, read)
        except LostFile as error:
            return [["", f"{sample.name}: {error.__cause__}"] for sample in index]

    @property
    def prompts(self) -> PromptFile | None:
        """Embeddings of the prompts, if `synthesize` made the shards."""
        table = self._beside(TABLE) if self.manifest else None
        return PromptFile(table) if table else None

    @property
    def preview(self) -> LinearPreview | None:
        """A preview of latents, if `synthesize` made the shards."""
        if not (self.manifest and self.latents):
            return None
        return LinearPreview(torch.tensor(self.manifest["colours"]), self.manifest["image"][-1] // self.manifest["latents"][-1])

    def dataset(self) -> Dataset[Sample]:
        return bucketed(self._squares(), self.shapes) if self.shapes else self._squares()

    def _squares(self) -> "ShardDataset":
        return ShardDataset(
            self.samples, self.latents, self.size, self._latent_shape, self.lost, self._without_caption, self.order
        )

    @cached_property
    def _latent_shape(self) -> tuple[int, ...] | None:
        if self.manifest:
            return tuple(self.manifest["latents"])
        dataset, shapes = ShardDataset(self.samples, True, 0), Counter[tuple[int, ...]]()
        # All over the data set, unless each would take a shard to be fetched.
        last = min(LOOKED_AT, len(self.samples)) if self.order else len(self.samples)
        for index in range(0, last, -(-last // LOOKED_AT)) if self.latents else ():
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
                f"data.path={self.folder}: made with another {name} (that of {made_by['path']}) than "
                f"teacher.path={self.checkpoint.path}; take that teacher, or synthesize the data set again"
            )


def check_sizes(shards: Sequence[Shard], manifest: Mapping[str, Any] | None) -> None:
    """Raises UserError if a shard's size differs from that in its manifest."""
    sizes = {shard["name"]: shard["bytes"] for shard in manifest["shards"]} if manifest else {}
    for shard in shards:
        size = shard.size if isinstance(shard, RemoteShard) else shard.stat().st_size
        if size and sizes.get(shard.name, size) != size:
            raise UserError(
                f"{shard}: {size} bytes, {sizes[shard.name]} in its manifest; "
                "delete the shard and run the same synthesize command again, which makes what is missing"
            )


def shard_order(samples: "ShardSamples", limit: int) -> ShardOrder:
    """The order of shards some of which are remote.

    Raises:
        UserError: if the cache is too small for them.
    """
    shards = [index.shard if isinstance(index.shard, RemoteShard) else None for index in samples.indexes]
    largest = max((shard.size for shard in shards if shard), default=0)
    order = ShardOrder(samples.ends, shards, limit)
    if not order.fits and GROUPS_IN_CACHE * largest > limit:
        raise UserError(
            f"data.cache_gb={limit / GIB:g}: too small for three of these shards, of up to {largest / GIB:.3g} GiB; "
            f"give at least {GROUPS_IN_CACHE * largest / GIB:.3g}"
        )
    return order


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


class ShardSamples(SampleSequence):
    """The samples of all indexes, one after another."""

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self.indexes = indexes
        self.ends: list[int] = np.cumsum([len(index) for index in indexes]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def sample(self, number: int) -> ShardSample:
        shard = bisect(self.ends, number)  # raises IndexError below, if there is none
        return self.indexes[shard][number - self.ends[shard]]


class ShardDataset(Dataset[Sample]):
    """Samples as tensors. Raises UserError for a damaged sample, StorageError if a shard cannot be read.

    Args:
        shape: of all latents; others are damaged. None for any.
        lost: reasons for samples that are in no shard any more, after the others.
        bad: index -> reason, of samples that cannot be used; may grow until the data set is read.
        order: of remote shards.
    """

    def __init__(
        self,
        samples: ShardSamples,
        latents: bool,
        size: int,
        shape: tuple[int, ...] | None = None,
        lost: Sequence[str] = (),
        bad: Mapping[int, str] = MappingProxyType({}),
        order: ShardOrder | None = None,
    ) -> None:
        self.samples, self.latents, self.size, self.shape, self.lost, self.bad = samples, latents, size, shape, lost, bad
        self.order = order
        self._files = OpenFiles()

    def __len__(self) -> int:
        return len(self.samples) + len(self.lost)

    def name(self, index: int) -> str:
        return self.samples[index].name

    @property
    def fingerprint(self) -> str:
        """Tells apart data sets of which not the same shards could be had."""
        return digest([len(self.lost), [[index.shard.name, len(index)] for index in self.samples.indexes]])

    def __getitem__(self, index: int) -> Sample:
        return self.shaped(index, (self.size, self.size))

    def original_shape(self, index: int) -> Shape:
        sample = self._usable(index)
        extension = image_extension(sample)
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
        image = decode_image(io.BytesIO(self._read(sample, image_extension(sample))), sample.name, 4 * self.size)
        return {"image": centre_crop(image, *shape), "caption": caption}

    def caption(self, sample: ShardSample) -> str:
        """Raises UserError if there is none that can be read."""
        problem = "no caption (.json with a prompt or caption, or .txt)"
        for extension, read in (("json", caption_of_json), ("txt", caption_of_text)):
            if extension in sample.members:
                try:
                    if text := read(self._read(sample, extension)):
                        return text
                except (StorageError, LostFile):
                    raise
                except (ValueError, RecursionError) as error:
                    problem = f"no caption: .{extension} cannot be read ({first_line(error)})"
        raise UserError(f"{sample.name}: {problem}, and a task has {{caption}} in its prompts")

    def _read(self, sample: ShardSample, extension: str, limit: int | None = None) -> bytes:
        if extension not in sample.members:
            raise UserError(f"{sample.name}: has no .{extension}")
        start, size = sample.members[extension]
        try:
            return self._files.read(sample.shard, start, size if limit is None else min(size, limit))
        except LostFile as error:
            raise LostFile(f"{sample.name}: {error}", error.final) from error


def image_extension(sample: ShardSample) -> str:
    return next((extension for extension in IMAGES if extension in sample.members), IMAGES[0])


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
