"""Source images that the teacher draws itself: training needs no pictures at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock
from torch.utils.data import Dataset

from dds_train.data.prompts import fill_all, read_prompts
from dds_train.data.shards import MANIFEST, ShardSource
from dds_train.data.source import Sample
from dds_train.data.synthesis import recipe_for, synthesize
from dds_train.diffusion import DiffusionCheckpoint

PER_SHARD = 1024


class SyntheticSource:
    """Shards drawn on first use, kept in a cache folder named after everything they depend on.

    Args:
        pretrained: the teacher.
        prompts: templates ("a photo of a {fur} cat" takes one of ``words["fur"]``), or a YAML file of them.
        words: what fills the templates.
        count: images.
        guidance, steps: of the sampling.
        batch_size: images at a time.
        seed: image i depends on (seed, i).
        cache: folder for the results of all such calls; ~/.cache/dds_train if not given.

    Raises:
        UserError: for a template whose words are missing.
    """

    def __init__(
        self,
        checkpoint: DiffusionCheckpoint,
        prompts: str | Sequence[str],
        words: Mapping[str, Sequence[str]],
        count: int,
        guidance: float,
        steps: int,
        batch_size: int,
        seed: int,
        cache: str | None,
    ) -> None:
        self.checkpoint, self.batch_size = checkpoint, batch_size
        filled = fill_all(*read_prompts(prompts, words), count, seed)
        self.recipe = recipe_for(checkpoint, filled, guidance=guidance, steps=steps, seed=seed, per_shard=PER_SHARD)
        self.folder = Path(cache or "~/.cache/dds_train").expanduser() / "synthetic" / self.recipe.digest()[:16]

    def prepare(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if not (self.folder / MANIFEST).exists():
                synthesize(self.checkpoint, self.recipe, self.folder, batch=self.batch_size)

    @property
    def captions(self) -> list[str]:
        return self._shards().captions

    def dataset(self) -> Dataset[Sample]:
        return self._shards().dataset()

    def _shards(self) -> ShardSource:
        return ShardSource(str(self.folder), self.checkpoint)
