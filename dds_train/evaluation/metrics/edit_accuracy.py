"""Whether critters have the attributes that the edit is to give them."""

import torch
from torch import Tensor

from dds_train.critters.scores import CritterScores, score_edit
from dds_train.evaluation.items import EvaluationItem
from dds_train.evaluation.metrics.metric import HIGHER, Batch, Metric


def is_critter(item: EvaluationItem) -> bool:
    return item.critter is not None


def critter_scores(batch: Batch) -> list[CritterScores]:
    """Scores of each image; for items that are critters."""
    scores = []
    for item, output in zip(batch.items, batch.outputs.split(1), strict=True):
        assert item.critter is not None
        scores.append(score_edit(output, [item.critter], item.changes))
    return scores


def critter_score(batch: Batch, field: str) -> Tensor:
    """One field of `CritterScores`, [B]."""
    return torch.tensor([getattr(scores, field) for scores in batch.shared(critter_scores)], dtype=torch.float64)


EDIT_ACCURACY = Metric(
    "edit accuracy",
    HIGHER,
    "share of outputs in which every edited attribute is classified as its target value, by the nearest exact render",
    per_image=lambda batch: critter_score(batch, "edit_accuracy"),
    applies=is_critter,
    exact=True,
)
