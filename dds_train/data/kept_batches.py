"""Batches of images and latents on disk, until the shard that they are for is complete."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dds_train.runs.files import atomic_write


class KeptBatches:
    """Images [3,H,W] in [-1,1], of 8 bits, and latents [C,h,w] by their seeds; what an earlier process kept is there.

    Args:
        folder: of these batches alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[int, tuple[Path, int]] = {}  # seed -> file and row
        for path in folder.glob("[!.]*.safetensors"):
            try:
                self._note(path)
            except (OSError, SafetensorError):  # cut by a power failure
                path.unlink()

    def __contains__(self, seed: int) -> bool:
        return seed in self._places

    def keep(self, seeds: Sequence[int], images: Tensor, latents: Tensor) -> None:
        path = self.folder / f"{seeds[0]}.safetensors"
        tensors = {"images": ((images + 1) * 127.5).round().byte(), "latents": latents, "seeds": torch.tensor(list(seeds))}
        with atomic_write(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        self._note(path)

    def load(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images [B,3,H,W] and latents [B,C,h,w], bit for bit as they were kept."""
        rows = [self._row(*self._places[seed]) for seed in seeds]
        return torch.stack([image for image, _ in rows]) / 127.5 - 1, torch.stack([z for _, z in rows])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self._places |= {seed: (path, row) for row, seed in enumerate(file.get_tensor("seeds").tolist())}

    def _row(self, path: Path, row: int) -> tuple[Tensor, Tensor]:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("images")[row], file.get_slice("latents")[row]
