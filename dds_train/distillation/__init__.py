"""The mathematics of score distillation. Imports torch and nothing of ours above it; draws no randomness of its own."""

from dds_train.distillation.guidance import Condition
from dds_train.distillation.inject import Distilled
from dds_train.distillation.losses import LOSSES, Loss, dds_loss, sds_loss
from dds_train.distillation.noise import NoiseSchedule, ScoreModel

__all__ = ["LOSSES", "Condition", "Distilled", "Loss", "NoiseSchedule", "ScoreModel", "dds_loss", "sds_loss"]
