"""Score-distillation losses, classifier-free guidance and noise schedules, in plain torch."""

from dds_train.distillation.guidance import Condition
from dds_train.distillation.inject import Distilled
from dds_train.distillation.losses import LOSSES, Loss, dds_loss, make_loss, sds_loss
from dds_train.distillation.noise import NoiseSchedule, ScoreModel
from dds_train.distillation.prompt import Prompt

__all__ = [
    "LOSSES",
    "Condition",
    "Distilled",
    "Loss",
    "NoiseSchedule",
    "Prompt",
    "ScoreModel",
    "dds_loss",
    "make_loss",
    "sds_loss",
]
