"""The teacher draws a data set: WebDataset shards of images, latents and prompts, with a table of prompt embeddings.

DIR/shard-00000.tar ...   NAME.png, NAME.z.npy (latent of that png), NAME.json (prompt, its row in the table, seed, score)
DIR/prompts.safetensors   embeddings of all prompts
DIR/manifest.json         checksums, the teacher's identity, how it was drawn; written last, when all shards are there
DIR/recipe.json           what the data set will be; written first
DIR/preview.png           the first pictures
"""

import hashlib
import io
import json
import os
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

from dds_train.data.shards import LATENT, MANIFEST, TABLE, ShardSource
from dds_train.diffusion import DiffusionCheckpoint, PromptTable, sample_latents
from dds_train.errors import UserError
from dds_train.images.files import save_image, to_pil
from dds_train.images.grids import image_grid

os.environ.setdefault("WDS_SECURE", "1")  # before the import: shards must not be able to run anything
from webdataset.writer import TarWriter

FORMAT = 1
PREVIEW = 64
# How well pictures [B,3,H,W] in [-1,1] show their B prompts: one number for each, larger is better.
Score = Callable[[Tensor, Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Recipe:
    """What determines a data set, up to the rounding that the batch size may change."""

    prompts: tuple[str, ...]  # of image 0, 1, ...
    guidance: float
    steps: int
    seed: int
    per_shard: int
    teacher: str  # fingerprint of all that draws
    score: str | None = None  # what filters, if anything does
    least: float = 0.0  # the score below which a picture is drawn again
    tries: int = 1

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    @property
    def shards(self) -> list[str]:
        return [f"shard-{n:05d}.tar" for n in range(-(-len(self.prompts) // self.per_shard))]


def recipe_for(checkpoint: DiffusionCheckpoint, prompts: Iterable[str], **settings: Any) -> Recipe:
    drawing = checkpoint.fingerprint("unet", "vae", "tokenizer", "text_encoder", "scheduler")
    return Recipe(prompts=tuple(prompts), teacher=drawing, **settings)


def synthesize(
    checkpoint: DiffusionCheckpoint,
    recipe: Recipe,
    folder: Path,
    *,
    batch: int,
    more_prompts: Iterable[str] = (),
    score: Score | None = None,
    rank: int = 0,
    world: int = 1,
) -> bool:
    """Draw what is missing in `folder`. Killed at any moment, the same call goes on at the first shard that is not whole.

    Args:
        batch: images at a time; does not change what is drawn, but for rounding.
        more_prompts: go into the table as well, so that `fit` needs no text encoder for them.
        score: filters, if the recipe says so; a picture that fails `recipe.tries` times is left out.
        rank, world: this process draws every `world`-th shard. The last one to finish writes the manifest.

    Returns:
        whether the data set is complete (with several processes: seen from this one).

    Raises:
        UserError: if the folder holds another data set, or something else.
    """
    _claim(folder, recipe)
    missing = [(n, name) for n, name in enumerate(recipe.shards) if n % world == rank and not (folder / name).exists()]
    if missing:  # a shard that was deleted comes again
        (folder / MANIFEST).unlink(missing_ok=True)
    first = {n: range(n * recipe.per_shard, min((n + 1) * recipe.per_shard, len(recipe.prompts))) for n, _ in missing}
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(["", *recipe.prompts]))}
    with tqdm(total=sum(map(len, first.values())), desc="drawing source images", unit="image", disable=not missing) as bar:
        for number, name in missing:
            partial = folder / f".{name}.{os.getpid()}.partial"
            with partial.open("wb") as file:
                _write_shard(
                    TarWriter(file, mtime=0, encoder=False), checkpoint, recipe, rows, first[number], batch, score, bar
                )
            os.replace(partial, folder / name)
    with FileLock(folder / ".lock"):
        if not all((folder / name).exists() for name in recipe.shards):
            return False
        _add_prompts(checkpoint, folder, [*recipe.prompts, *more_prompts])
        if not (folder / MANIFEST).exists():
            _finish(checkpoint, recipe, folder, batch)
    return True


def image_seed(recipe: Recipe, index: int, attempt: int) -> int:
    """The seed that `sample_latents` gets for an image; it stands in the image's .json."""
    return int.from_bytes(hashlib.sha256(f"{recipe.seed}/{index}/{attempt}".encode()).digest()[:6], "big")


def _claim(folder: Path, recipe: Recipe) -> None:
    """Mark the folder as that of this recipe."""
    path = folder / "recipe.json"
    if path.exists():
        if json.loads(path.read_text())["digest"] != recipe.digest():
            raise UserError(
                f"output_dir={folder}: holds a data set drawn from other settings; take another folder, or delete it"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"output_dir={folder}: is not empty, and no data set of ours; take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"digest": recipe.digest(), **asdict(recipe)}, indent=1) + "\n")
    os.replace(partial, path)


@torch.no_grad()
def _write_shard(
    tar: TarWriter,
    checkpoint: DiffusionCheckpoint,
    recipe: Recipe,
    rows: dict[str, int],
    indices: range,
    batch: int,
    score: Score | None,
    bar: tqdm,
) -> None:
    kept: dict[int, dict[str, Any]] = {}
    waiting = [(index, 0) for index in indices]
    while waiting:
        now, waiting = waiting[:batch], waiting[batch:]
        prompts = [recipe.prompts[index] for index, _ in now]
        seeds = [image_seed(recipe, index, attempt) for index, attempt in now]
        images, latents = _draw(checkpoint, recipe, prompts, seeds)
        scores: Sequence[float | None] = score(images, prompts) if score else [None] * len(now)
        for (index, attempt), seed, image, z, value in zip(now, seeds, images, latents, scores, strict=True):
            prompt = recipe.prompts[index]
            if value is not None and value < recipe.least:
                waiting += [(index, attempt + 1)] if attempt + 1 < recipe.tries else []
                bar.update(attempt + 1 == recipe.tries)
                continue
            about = {"prompt": prompt, "prompt_id": rows[prompt], "seed": seed, **({} if value is None else {"score": value})}
            kept[index] = {"__key__": f"{index:08d}", "png": _png(image), LATENT: _npy(z), "json": json.dumps(about).encode()}
            bar.update()
    for index in sorted(kept):
        tar.write(kept[index])
    tar.close()


def _draw(checkpoint: DiffusionCheckpoint, recipe: Recipe, prompts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Images [B,3,H,W] in [-1,1], of 8 bits, and their latents [B,C,h,w]."""
    autoencoder = checkpoint.autoencoder()
    condition = PromptTable.of(checkpoint.text_encoder(), prompts).condition(prompts)
    z = sample_latents(
        checkpoint.teacher(), checkpoint.sampler(), condition, seeds, steps=recipe.steps, guidance=recipe.guidance
    )
    images = ((autoencoder.decode(z) + 1) * 127.5).round() / 127.5 - 1
    # Through the codec once, since that is where the inputs of `predict` come from.
    return images.cpu(), autoencoder.encode(images).cpu()


def _png(image: Tensor) -> bytes:
    content = io.BytesIO()
    to_pil(image).save(content, "PNG")
    return content.getvalue()


def _npy(z: Tensor) -> bytes:
    content = io.BytesIO()
    np.save(content, z.numpy(), allow_pickle=False)
    return content.getvalue()


def _add_prompts(checkpoint: DiffusionCheckpoint, folder: Path, prompts: Sequence[str]) -> None:
    path = folder / TABLE
    table = PromptTable.load(path) if path.exists() else PromptTable({})
    completed = table.completed(prompts, checkpoint.text_encoder)
    if completed is not table:
        partial = folder / f".{TABLE}.partial"
        completed.save(partial)
        os.replace(partial, path)


def _finish(checkpoint: DiffusionCheckpoint, recipe: Recipe, folder: Path, batch: int) -> None:
    """Preview and manifest, from the shards as they lie there."""
    paths = [folder / name for name in recipe.shards]
    drawn = ShardSource(str(folder), checkpoint=checkpoint, latents=False)
    latents = ShardSource(str(folder), checkpoint=checkpoint, latents=True).dataset()
    images = drawn.dataset()
    count = min(256, len(drawn.entries))
    shown = torch.stack([images[i]["image"] for i in range(count)])
    z = torch.stack([latents[i]["z"] for i in range(count)])
    save_image(image_grid(shown[:PREVIEW].split(8)), folder / "preview.png")
    manifest = {
        "format": FORMAT,
        "samples": len(drawn.entries),
        "left_out": len(recipe.prompts) - len(drawn.entries),
        "shards": [{"name": p.name, "bytes": p.stat().st_size, "sha256": _sha256(p)} for p in paths],
        "teacher": {
            "path": checkpoint.path,
            "vae": checkpoint.fingerprint("vae"),
            "text_encoder": checkpoint.fingerprint("tokenizer", "text_encoder"),
            "unet": checkpoint.fingerprint("unet", "scheduler"),
        },
        "latents": list(z.shape[1:]),
        "image": list(shown.shape[1:]),
        "sampling": {"steps": recipe.steps, "guidance": recipe.guidance, "seed": recipe.seed, "batch": batch},
        "filter": {"score": recipe.score, "least": recipe.least, "tries": recipe.tries} if recipe.score else None,
        "colours": colours(z, shown),
    }
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(partial, folder / MANIFEST)


def colours(z: Tensor, images: Tensor) -> list[list[float]]:
    """The affine map [C+1][3] from a latent's channels (and 1) to its mean colour, by least squares, for previews."""
    small = F.adaptive_avg_pool2d(images, (z.shape[-2], z.shape[-1])).permute(0, 2, 3, 1).flatten(0, 2).double()
    flat = z.permute(0, 2, 3, 1).flatten(0, 2).double()
    solution = torch.linalg.lstsq(torch.cat([flat, torch.ones_like(flat[:, :1])], 1), small, driver="gelsd").solution
    return [[round(v, 6) for v in row] for row in solution.tolist()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def verify(folder: Path) -> None:
    """Compare all shards with the manifest's checksums.

    Raises:
        UserError: naming the first that differs.
    """
    for shard in json.loads((folder / MANIFEST).read_text())["shards"]:
        if _sha256(folder / shard["name"]) != shard["sha256"]:
            raise UserError(f"{folder / shard['name']}: not what it was when it was drawn; delete it and run the command again")
