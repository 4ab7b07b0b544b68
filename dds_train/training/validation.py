"""Exact scores during training, in the critters world."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import score_edit
from dds_train.critters.world import VALIDATION_SEED, Critter, counterfactuals
from dds_train.diffusion import Autoencoder
from dds_train.errors import UserError
from dds_train.training.module import DistillationModule
from dds_train.translator import Task

CHUNK = 32  # critters at a time; between them a validation can be left


class CritterValidation(Callback):
    """Metrics of edits of unseen critters by the averaged weights: val/gap_closed and val/edit_accuracy (see `CritterScores`).

    Logged for each task with ground truth, and as means over these. Must come before `EMA` among the callbacks, whose hook
    restores the raw weights.

    Args:
        tasks: those with `truth` are scored.
        autoencoder: the VAE, between images and latents.
        count: number of critters.
        sources: parameters of all critters, such as ``{"species": "cat"}``.
    """

    def __init__(self, tasks: Mapping[str, Task], autoencoder: Autoencoder, count: int, sources: Mapping[str, Any]) -> None:
        self.truths = {name: task.truth for name, task in tasks.items() if task.truth}
        self.autoencoder = autoencoder
        self.critters: list[Critter] = []
        try:
            for truth in self.truths.values():
                self.critters, _ = counterfactuals(VALIDATION_SEED, count, sources, truth)
        except (TypeError, ValueError) as error:
            raise UserError(f"validation: {error}") from error

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        gaps, accuracies = [], []
        chunks = {first: self.critters[first : first + CHUNK] for first in range(0, len(self.critters), CHUNK)}
        encode = cache(lambda first: self.autoencoder.encode(torch.stack([to_tensor(one) for one in chunks[first]])))
        for number, name in enumerate(pl_module.tasks.names):
            if name not in self.truths:
                continue
            gap = accuracy = 0.0
            for first, critters in chunks.items():
                if pl_module.should_stop():
                    return
                z = encode(first)  # once for all tasks
                images = self.autoencoder.decode(pl_module.translate(z, pl_module.repeat_task(number, len(z))))
                scores, share = score_edit(images, critters, self.truths[name]), len(critters) / len(self.critters)
                gap, accuracy = gap + share * scores.gap_closed, accuracy + share * scores.edit_accuracy
            gaps.append(gap)
            accuracies.append(accuracy)
            if len(self.truths) > 1:
                pl_module.log_dict({f"val/{name}/gap_closed": gap, f"val/{name}/edit_accuracy": accuracy}, batch_size=1)
        mean = {"val/gap_closed": sum(gaps) / len(gaps), "val/edit_accuracy": sum(accuracies) / len(accuracies)}
        pl_module.log_dict(mean, prog_bar=True, batch_size=1)
