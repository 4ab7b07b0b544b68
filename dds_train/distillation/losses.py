"""Losses that turn a frozen diffusion model's opinion of an image into a gradient for that image.

All share one signature (`linear.linear_loss`). The teacher looks at a noised latent and predicts the noise in it, once knowing
the prompt; where its prediction departs from what is there, it says "the image should change like this".

A new linear loss is an entry in `linear.LINEAR`; one of another kind is a file of its own and an entry in `LOSSES`.
"""

from collections.abc import Callable
from functools import partial

from dds_train.distillation.contrastive import cds_loss
from dds_train.distillation.fixed_point import ids_loss
from dds_train.distillation.inject import Distilled
from dds_train.distillation.linear import LINEAR, linear_loss

Loss = Callable[..., Distilled]
LOSSES: dict[str, Loss] = {**{name: partial(linear_loss, name) for name in LINEAR}, "cds": cds_loss, "ids": ids_loss}
dds_loss, sds_loss = LOSSES["dds"], LOSSES["sds"]
