"""Exact scores during training, in the critters world."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import CritterScores, score_edit
from dds_train.critters.world import critter
from dds_train.diffusion import Autoencoder
from dds_train.training.module import DistillationModule
from dds_train.translator import Task

VALIDATION_SEED = 30_000_000  # number of the first critter: none that training, or the README's tables, see


class CritterValidation(Callback):
    """Edits unseen critters with the averaged weights and logs, for each task whose truth is known and as means over these,
    val/gap_closed and val/right: the share of edits that read as what was wanted.

    Must come before `EMA` among the callbacks, whose hook puts the raw weights back.

    Args:
        tasks: those with `truth` are scored.
        codec: between pictures and latents.
        count: critters.
        sources: parameters of all of them, such as ``{"species": "cat"}``.
    """

    def __init__(self, tasks: Mapping[str, Task], autoencoder: Autoencoder, count: int, sources: Mapping[str, Any]) -> None:
        self.truths = {name: task.truth for name, task in tasks.items() if task.truth}
        self.autoencoder = autoencoder
        self.critters = [critter(VALIDATION_SEED + i, **sources) for i in range(count)]

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        z = self.autoencoder.encode(torch.stack([to_tensor(one) for one in self.critters]))
        gaps, shares = [], []
        for number, name in enumerate(pl_module.tasks.names):
            if name not in self.truths:
                continue
            images = self.autoencoder.decode(pl_module.translate(z, pl_module.every_time(number, z)))
            scores = score_edit(images, self.critters, self.truths[name])
            gaps.append(scores.gap_closed)
            shares.append(right(scores, self.truths[name]))
            if len(self.truths) > 1:
                pl_module.log_dict({f"val/{name}/gap_closed": gaps[-1], f"val/{name}/right": shares[-1]}, batch_size=1)
        mean = {"val/gap_closed": sum(gaps) / len(gaps), "val/right": sum(shares) / len(shares)}
        pl_module.log_dict(mean, prog_bar=True, batch_size=1)


def right(scores: CritterScores, truth: Mapping[str, Any]) -> float:
    """The share of edits that read as what was wanted: of the worst attribute that the edit is about."""
    fields = {"species": "species", "fur": "fur", "backdrop": "backdrop", "glasses": "accessories", "hat": "accessories"}
    return min(getattr(scores, fields[name]) for name in truth)
