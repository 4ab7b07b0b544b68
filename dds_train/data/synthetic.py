"""Source images sampled from the teacher: training needs no images of the user's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock
from torch.utils.data import Dataset

from dds_train.data.prompts import fill_all, read_prompts
from dds_train.data.shards import MANIFEST, ShardSource
from dds_train.data.source import Sample
from dds_train.data.synthesis import recipe_for, synthesize
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.runs.digest import cache_folder

PER_SHARD = 1024


class SyntheticSource:
    """Shards that are sampled on first use and kept in a cache folder named after everything they depend on.

    Args:
        checkpoint: the teacher's.
        prompts: templates ("a photo of a {fur} cat" takes one of ``words["fur"]``), or a YAML file of them.
        words: words for the templates' placeholders.
        count: number of images.
        guidance, steps: of the sampler.
        batch_size: images at a time.
        seed: image i depends on (seed, i).
        cache: folder for all such data sets; default: $DDS_CACHE or ~/.cache/dds_train.

    Raises:
        UserError: for a placeholder without words.
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
        checkpoint.check_guidance("dds", guidance, "data.guidance")
        self.checkpoint, self.batch_size = checkpoint, batch_size
        filled_prompts = fill_all(*read_prompts(prompts, words), count, seed)
        self.recipe = recipe_for(checkpoint, filled_prompts, guidance=guidance, steps=steps, seed=seed, per_shard=PER_SHARD)
        root = Path(cache).expanduser() if cache else cache_folder()
        self.folder = root / "synthetic" / self.recipe.digest()[:16]

    def prepare(self) -> None:
        if (self.folder / MANIFEST).exists():  # complete: the cache may be one that we cannot write to
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{self.folder}.lock").acquire()
        except OSError as error:
            raise UserError(
                f"data.cache={self.folder.parent.parent}: cannot be written ({error.strerror}); "
                "give data.cache=FOLDER, or set the environment variable DDS_CACHE"
            ) from error
        with lock:
            if not (self.folder / MANIFEST).exists():
                synthesize(self.checkpoint, self.recipe, self.folder, batch_size=self.batch_size)

    @property
    def captions(self) -> list[str]:
        return self._shards().captions

    def dataset(self) -> Dataset[Sample]:
        return self._shards().dataset()

    def _shards(self) -> ShardSource:
        return ShardSource(str(self.folder), self.checkpoint)
