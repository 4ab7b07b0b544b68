"""Data sets sampled from the teacher: WebDataset shards of images, latents and prompts, with a file of prompt embeddings.

DIR/shard-00000.tar ...   NAME.png, NAME.z.npy (latent of that png), NAME.json (prompt, seed, score)
DIR/shard-00000.index.npz ...   where the samples of a shard are
DIR/prompts.sqlite        embeddings of all prompts (`PromptFile`)
DIR/manifest.json         checksums, digests of the teacher, sampling settings; written last, when all shards are complete
DIR/preview.png           the first images
DIR/record.jsonl          settings that determine the data set, and the shards that are complete
DIR/.work/                embeddings, and batches of shards that are not complete, so that a kill loses one batch
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dds_train.data.kept_batches import KeptBatches
from dds_train.data.kept_index import index_beside, write_beside
from dds_train.data.shards import FORMAT, MANIFEST, TABLE, ShardSource, read_manifest
from dds_train.data.tar_index import LATENT
from dds_train.diffusion import DiffusionCheckpoint, PromptFile, sample_latents
from dds_train.distillation.guidance import Condition
from dds_train.errors import UserError
from dds_train.images.files import save_image, to_pil
from dds_train.images.grids import image_grid
from dds_train.runs.digest import digest, sha256
from dds_train.runs.files import atomic_write
from dds_train.runs.ranks import ALONE, Ranks
from dds_train.runs.record import Record

os.environ.setdefault("WDS_SECURE", "1")  # before the import: shards must not be able to run anything
from webdataset.writer import TarWriter

WORK = ".work"
PREVIEW = 64  # images in preview.png
# Images [B,3,H,W] in [-1,1] and their B prompts -> B scores of how well they match, larger is better.
Score = Callable[[Tensor, Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Recipe:
    """Settings that determine a data set, up to the rounding errors of the batch size."""

    prompts: tuple[str, ...]  # of image 0, 1, ...
    guidance: float
    steps: int
    seed: int
    per_shard: int
    teacher: str  # digest of the checkpoint
    score: str | None = None  # name of the filter's model, if there is a filter
    least: float = 0.0  # the score below which an image is sampled again
    tries: int = 1

    def digest(self) -> str:
        return digest(asdict(self))

    def settings(self) -> dict[str, Any]:
        """By the names of the configuration, for the record."""
        prompts = {"count": len(self.prompts), "prompts": digest(self.prompts)}
        clip = {"clip": {"model": self.score, "least": self.least, "tries": self.tries}}
        return {**prompts, **{key: getattr(self, key) for key in ("guidance", "steps", "seed", "per_shard", "teacher")}, **clip}

    @property
    def shards(self) -> list[str]:
        return [f"shard-{n:05d}.tar" for n in range(-(-len(self.prompts) // self.per_shard))]


def recipe_for(checkpoint: DiffusionCheckpoint, prompts: Iterable[str], **settings: Any) -> Recipe:
    quantized = f", {checkpoint.quantization}" if checkpoint.quantization else ""
    return Recipe(prompts=tuple(prompts), teacher=checkpoint.digest() + quantized, **settings)


def synthesize(
    checkpoint: DiffusionCheckpoint,
    recipe: Recipe,
    folder: Path,
    *,
    batch_size: int,
    extra_prompts: Iterable[str] = (),
    score: Score | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Sample the shards that are missing in `folder`. After a kill, the same call resumes at the first incomplete shard.

    Args:
        batch_size: images at a time; changes them by rounding errors only.
        extra_prompts: prompts for the file of embeddings, so that `fit` needs no text encoder for them.
        score: filter of a recipe with `score`; an image that fails `recipe.tries` times is left out.
        ranks: this process samples its share of the shards; the first waits for those of its launch and writes the manifest.

    Returns:
        whether this process has seen the data set complete.

    Raises:
        UserError: if the folder has another data set, or other files, in it.
    """
    with Record(folder, "synthesize", ranks) as record:
        claim(record, recipe)
        table = folder / TABLE
        prompts = PromptFile(table if table.exists() else folder / WORK / f"prompts-{recipe.digest()[:16]}.sqlite")
        checkpoint.embed_into(prompts, [*recipe.prompts, *extra_prompts])  # all of them before the denoiser is loaded
        _sample_missing(checkpoint, recipe, record, prompts, batch_size, score)
        if ranks.launch and record.gather(None) is None:
            return False
        with FileLock(folder / ".manifest.lock"):
            if not all((folder / name).exists() for name in recipe.shards):
                return False
            if not table.exists():
                os.replace(prompts.path, table)
            if not (folder / MANIFEST).exists():
                _finish(checkpoint, recipe, folder, batch_size)
    return True


def image_seed(recipe: Recipe, index: int, attempt: int) -> int:
    """The seed of an image's initial noise; recorded in its .json."""
    return int.from_bytes(hashlib.sha256(f"{recipe.seed}/{index}/{attempt}".encode()).digest()[:6], "big")


def claim(record: Record, recipe: Recipe) -> None:
    """Make the folder that of this recipe."""
    names = [path.name for path in record.folder.iterdir()] if record.folder.exists() else []  # before the record is looked for
    if not record.files and not all(name.startswith(".") for name in names):
        raise UserError(f"output_dir={record.folder}: not empty, and not a dds_train data set; take another folder")
    read_manifest(record.folder / MANIFEST)  # a newer one is not overwritten
    record.claim(recipe.settings())


def _sample_missing(
    checkpoint: DiffusionCheckpoint,
    recipe: Recipe,
    record: Record,
    prompts: PromptFile,
    batch_size: int,
    score: Score | None,
) -> None:
    key, folder = recipe.digest(), record.folder
    own = record.ranks.share(list(enumerate(recipe.shards)))
    missing = [(number, name) for number, name in own if not record.is_done(name, key)]
    if missing:
        (folder / MANIFEST).unlink(missing_ok=True)
        record.strike(*(name for _, name in missing))
    for _, name in missing:
        (folder / name).unlink(missing_ok=True)
        index_beside(folder / name).unlink(missing_ok=True)
    first = {n: range(n * recipe.per_shard, min((n + 1) * recipe.per_shard, len(recipe.prompts))) for n, _ in missing}
    with tqdm(total=sum(map(len, first.values())), desc="sample source images", unit="image", disable=not missing) as bar:
        for number, name in missing:
            kept = KeptBatches(folder / WORK / f"{name}-{key[:16]}")
            with atomic_write(folder / name, durable=True) as partial, partial.open("wb") as file:
                tar = TarWriter(file, mtime=0, encoder=False)
                try:
                    _write_shard(tar, checkpoint, recipe, prompts, first[number], batch_size, score, bar, kept)
                except BaseException:
                    tar.tarstream.fileobj.closed = True  # or it writes its rest when it is collected, though the disk is full
                    raise
            write_beside(folder / name)
            record.add(name, key)
            kept.remove()


@torch.no_grad()
def _write_shard(
    tar: TarWriter,
    checkpoint: DiffusionCheckpoint,
    recipe: Recipe,
    embedded: PromptFile,
    indices: range,
    batch_size: int,
    score: Score | None,
    bar: tqdm,
    kept: KeptBatches,
) -> None:
    accepted: dict[int, dict[str, Any]] = {}
    queue = [(index, 0) for index in indices]
    while queue:
        batch, queue = queue[:batch_size], queue[batch_size:]
        prompts = [recipe.prompts[index] for index, _ in batch]
        seeds = [image_seed(recipe, index, attempt) for index, attempt in batch]
        # The queue depends on scores alone: after a kill it comes to the same batches.
        fresh = [number for number, seed in enumerate(seeds) if seed not in kept]
        if fresh:
            some, texts = [seeds[number] for number in fresh], [prompts[number] for number in fresh]
            condition = embedded.table(texts, checkpoint.device).condition(texts)
            kept.keep(some, *sample_images(checkpoint, recipe, condition, some))
        images, latents = kept.load(seeds)
        scores: Sequence[float | None] = score(images, prompts) if score else [None] * len(batch)
        for (index, attempt), seed, image, z, value in zip(batch, seeds, images, latents, scores, strict=True):
            prompt = recipe.prompts[index]
            if value is not None and value < recipe.least:
                queue += [(index, attempt + 1)] if attempt + 1 < recipe.tries else []
                bar.update(attempt + 1 == recipe.tries)
                continue
            record = {"prompt": prompt, "seed": seed, **({} if value is None else {"score": value})}
            members = {"png": encode_png(image), LATENT: encode_npy(z), "json": json.dumps(record).encode()}
            accepted[index] = {"__key__": f"{index:08d}", **members}
            bar.update()
    for index in sorted(accepted):
        tar.write(accepted[index])
    tar.close()


def sample_images(
    checkpoint: DiffusionCheckpoint, recipe: Recipe, condition: Condition, seeds: list[int]
) -> tuple[Tensor, Tensor]:
    """Images [B,3,H,W] in [-1,1], rounded to 8 bits, and their latents [B,C,h,w]."""
    autoencoder = checkpoint.autoencoder()
    z = sample_latents(
        checkpoint.teacher(), checkpoint.sampler(), condition, seeds, steps=recipe.steps, guidance=recipe.guidance
    )
    images = ((autoencoder.decode(z) + 1) * 127.5).round() / 127.5 - 1
    # Encoded again, as `predict` encodes its inputs.
    return images.cpu(), autoencoder.encode(images).cpu()


def encode_png(image: Tensor) -> bytes:
    content = io.BytesIO()
    to_pil(image).save(content, "PNG")
    return content.getvalue()


def encode_npy(z: Tensor) -> bytes:
    content = io.BytesIO()
    np.save(content, z.numpy(), allow_pickle=False)
    return content.getvalue()


def _finish(checkpoint: DiffusionCheckpoint, recipe: Recipe, folder: Path, batch_size: int) -> None:
    """Write preview and manifest from the complete shards."""
    paths = [folder / name for name in recipe.shards]
    source = ShardSource(str(folder), checkpoint=checkpoint, latents=False)
    latents = ShardSource(str(folder), checkpoint=checkpoint, latents=True).dataset()
    dataset, count = source.dataset(), min(256, len(source.samples))
    images = torch.stack([dataset[i]["image"] for i in range(count)])
    z = torch.stack([latents[i]["z"] for i in range(count)])
    save_image(image_grid(images[:PREVIEW].split(8)), folder / "preview.png")
    manifest = {
        "format": FORMAT,
        "samples": len(source.samples),
        "left_out": len(recipe.prompts) - len(source.samples),
        "shards": [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths],
        "teacher": {
            "path": checkpoint.origin,
            "vae": checkpoint.digest("vae", up_to_half=True),
            "text": checkpoint.digest("text", up_to_half=True),
            "denoiser": checkpoint.digest("denoiser", "scheduler", up_to_half=True),
        },
        "latents": list(z.shape[1:]),
        "image": list(images.shape[1:]),
        "sampling": {"steps": recipe.steps, "guidance": recipe.guidance, "seed": recipe.seed, "batch_size": batch_size},
        "filter": {"score": recipe.score, "least": recipe.least, "tries": recipe.tries} if recipe.score else None,
        "colours": colours(z, images),
    }
    with atomic_write(folder / MANIFEST, durable=True) as partial:
        partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder / WORK, ignore_errors=True)


def colours(z: Tensor, images: Tensor) -> list[list[float]]:
    """The affine map [C+1][3] from a latent pixel's channels (and 1) to its mean colour, by least squares, for previews."""
    small = F.adaptive_avg_pool2d(images, (z.shape[-2], z.shape[-1])).permute(0, 2, 3, 1).flatten(0, 2).double()
    flat = z.permute(0, 2, 3, 1).flatten(0, 2).double()
    solution = torch.linalg.lstsq(torch.cat([flat, torch.ones_like(flat[:, :1])], 1), small, driver="gelsd").solution
    return [[round(v, 6) for v in row] for row in solution.tolist()]


def verify(folder: Path) -> None:
    """Compare all shards with the checksums of the manifest.

    Raises:
        UserError: naming the first that differs.
    """
    for shard in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]:
        if sha256(folder / shard["name"]) != shard["sha256"]:
            raise UserError(f"{folder / shard['name']}: checksum mismatch; delete the shard and run the command again")
