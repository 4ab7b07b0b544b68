"""What people load with a checkpoint: LoRA, textual inversions, another VAE, the configurations of a single file."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dds_train import hub
from dds_train.diffusion.location import HUB_ID, delivered
from dds_train.diffusion.part_files import files_to_load, is_complete
from dds_train.errors import UserError

WEIGHTS = (".safetensors", ".bin", ".pt")
REPOSITORY_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]*[\w-])(?:/(.+))?")  # owner/name, owner/name/FILE
# Of a folder the file with the name that diffusers gives it, if there are several.
LORA_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_model.safetensors")
EMBEDDING_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")


@dataclass(frozen=True)
class Additions:
    """Part of a checkpoint's identity: with others it is another teacher.

    Attributes:
        config: folder or hub id, in diffusers' layout, with the configurations and tokenizers of a single-file checkpoint.
        lora: (file, folder or hub id; weight) of each, fused into denoiser and text encoders.
        embeddings: (token, or None for the file's own; file, folder or hub id) of textual inversions.
        vae: file, folder or hub id of a VAE that takes the place of the checkpoint's own.
    """

    config: str | None = None
    lora: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[tuple[str | None, str], ...] = ()
    vae: str | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Additions":
        """From `to_dict`, or a part of it."""
        known: dict[str, Any] = {
            key: tuple(map(tuple, value)) if isinstance(value, (list, tuple)) else value for key, value in plain.items()
        }
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def replaced(self, place: Callable[[str], str | None]) -> "Additions":
        """With `place` of each path; those without one are left out."""
        lora = tuple((at, weight) for path, weight in self.lora if (at := place(path)))
        embeddings = tuple((token, at) for token, path in self.embeddings if (at := place(path)))
        return Additions(self.config and place(self.config), lora, embeddings, self.vae and place(self.vae))

    def check(self, pipeline: Any, is_file: bool) -> None:
        """Refuse what a checkpoint does not take, and what is not there, before any weights are read.

        Args:
            pipeline: diffusers' class.
            is_file: whether the checkpoint is a single file.
        """
        for key, value, loader in (
            ("lora", self.lora, "load_lora_weights"),
            ("embeddings", self.embeddings, "load_textual_inversion"),
        ):
            if value and not hasattr(pipeline, loader):
                raise UserError(f"teacher.{key}: diffusers' {pipeline.__name__} takes none")
        if self.config and not is_file:
            raise UserError(f"teacher.config={self.config}: is for teacher.path=FILE.safetensors")
        self.lora_files()
        self.embedding_files()
        if self.vae:
            vae_folder(self.vae)

    def lora_files(self) -> list[tuple[Path, float]]:
        """Raises UserError if one is not there, as the next."""
        return [(weights_file("teacher.lora", path, LORA_NAMES), weight) for path, weight in self.lora]

    def embedding_files(self) -> list[tuple[str | None, Path]]:
        return [(token, weights_file("teacher.embeddings", path, EMBEDDING_NAMES)) for token, path in self.embeddings]


def vae_folder(path: str) -> Path | None:
    """The folder of a VAE, from it, a checkpoint's folder, or a hub id of either; None for a file.

    Raises:
        UserError: if there is none.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return None
    if not local.is_dir():
        if path.endswith(WEIGHTS) or not HUB_ID.fullmatch(path) or local.parent.is_dir():
            raise UserError(f"teacher.vae={path}: no such file or folder, and not a hub id such as owner/name")
        cached = hub.cached_snapshot(path)
        local = cached if cached and any(map(is_complete, (cached / "vae", cached))) else _fetched_vae(path)
    found = [one for one in (local / "vae", local) if (one / "config.json").is_file()]
    if not found:
        raise UserError(f"teacher.vae={path}: no config.json there; give the folder of a VAE in diffusers' layout, or a file")
    return found[0]


def _fetched_vae(repository: str) -> Path:
    def chosen(names: Collection[str]) -> list[str]:
        prefix = "vae/" if "vae/config.json" in names else ""
        own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        return [prefix + name for name in ("config.json", *files_to_load(own)) if name in own]

    with delivered("teacher.vae", repository):
        return hub.fetch(repository, "vae", chosen)


def weights_file(key: str, path: str, names: Sequence[str]) -> Path:
    """The file of weights at `path`: a file, a folder or repository with one, or a file of a repository (owner/name/FILE).

    Args:
        key: the configuration's, for messages.
        names: of the file to take where there are several.

    Raises:
        UserError: if there is none, or it cannot be told which.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return local
    if local.is_dir():
        return local / choose(key, path, [one.name for one in local.iterdir() if one.is_file()], names)
    parts = REPOSITORY_FILE.fullmatch(path)
    if parts is None or (parts[2] is None and path.endswith(WEIGHTS)) or Path(path).parent.is_dir():
        raise UserError(f"{key}={path}: no such file or folder, and not a hub id such as owner/name or owner/name/FILE")
    repository, name = parts.groups()

    def chosen(files: Collection[str]) -> list[str]:
        return [name or choose(key, path, [one for one in files if "/" not in one], names)]

    folder = hub.cached_snapshot(repository)
    present = [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()] if folder else []
    if folder is None or not (name in present if name else any(one.endswith(WEIGHTS) for one in present)):
        with delivered(key, repository):
            folder = hub.fetch(repository, name or "weights", chosen)
            present = [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()]
    return folder / chosen(present)[0]


def choose(key: str, path: str, files: Collection[str], names: Sequence[str]) -> str:
    """The file of `names`, or else the only one of weights."""
    weights = sorted(one for one in files if one.endswith(WEIGHTS))
    known = [one for one in names if one in weights]
    if not known and len(weights) != 1:
        found = f"{len(weights)} files of weights there ({', '.join(weights)})" if weights else "no file of weights there"
        raise UserError(f"{key}={path}: {found}; give the file")
    return (known or weights)[0]
