"""Critters as a data set."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dds_train.critters.captions import full_caption
from dds_train.critters.render import render
from dds_train.critters.world import Critter, critter


def to_tensor(one: Critter, size: int = 64) -> Tensor:
    """Render of a critter as pixels [3,size,size] in [-1,1]."""
    return torch.from_numpy(render(one, size)).permute(2, 0, 1).float() / 127.5 - 1


class CritterDataset(Dataset[dict[str, Tensor]]):
    """Critters number `first` to ``first + count - 1``; `fixed` parameters (``species="cat"``) are the same in all."""

    def __init__(self, count: int, first: int = 0, size: int = 64, **fixed: Any) -> None:
        self.critters = [critter(seed, **fixed) for seed in range(first, first + count)]
        self.size = size

    def __len__(self) -> int:
        return len(self.critters)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"image": pixels [3,S,S] in [-1,1], "caption": index of the caption}"""
        return {"image": to_tensor(self.critters[index], self.size), "caption": torch.tensor(index)}


class CritterSource:
    """A data source (see data/source.py) of exact renders, instead of the teacher's samples."""

    def __init__(self, count: int, first: int = 0, size: int = 64, **fixed: Any) -> None:
        self.arguments = {"count": count, "first": first, "size": size, **fixed}

    def prepare(self) -> None:
        """Nothing: images are rendered as they are read."""

    @property
    def captions(self) -> list[str]:
        return [full_caption(one) for one in CritterDataset(**self.arguments).critters]

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return CritterDataset(**self.arguments)
