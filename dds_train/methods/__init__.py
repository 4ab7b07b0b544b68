"""Editing methods with one interface: image batch in, image batch out.

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.images.files import read_image, save_image
from dds_train.methods import METHODS, MethodContext

context = MethodContext(DiffusionCheckpoint("bundled"))
edit = METHODS["optimize"](context, loss="dds", steps=200, lr=0.05, guidance=1.5, t_range=(400, 980))
images = edit(read_image("cat.png")[None], ["a photo of a cat"], ["a photo of a lion"])
save_image(images[0], "lion.png")
"""

from dds_train.methods.registry import (
    METHODS,
    Method,
    MethodContext,
    ddim_inversion,
    identity,
    optimize,
    sdedit,
    translator,
    vae_reconstruction,
)

__all__ = [
    "METHODS",
    "Method",
    "MethodContext",
    "ddim_inversion",
    "identity",
    "optimize",
    "sdedit",
    "translator",
    "vae_reconstruction",
]
