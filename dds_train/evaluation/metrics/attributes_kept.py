"""Whether critters keep the attributes that the edit is not about."""

from collections.abc import Callable

from torch import Tensor

from dds_train.evaluation.items import EvaluationItem
from dds_train.evaluation.metrics.edit_accuracy import critter_score, is_critter
from dds_train.evaluation.metrics.metric import HIGHER, Batch, Metric


def kept(field: str, meaning: str, applies: Callable[[EvaluationItem], bool] = is_critter) -> Metric:
    def share(batch: Batch) -> Tensor:
        return critter_score(batch, field)

    return Metric(
        field, HIGHER, f"share of outputs with {meaning} of the ground truth", per_image=share, applies=applies, exact=True
    )


SPECIES = kept("species", "the species", lambda item: is_critter(item) and "species" not in item.changes)
FUR = kept("fur", "the fur")
BACKDROP = kept("backdrop", "the backdrop")
ACCESSORIES = kept("accessories", "the glasses and hat, worn or not,")
