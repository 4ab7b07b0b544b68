"""The commands: each wires rooms together, from its typed configuration."""

import diffusers
import transformers

from dds_train.cli.schema import TeacherConfig
from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.diffusion.device import find_dtype

# Their notes on every load contain nothing that a user of the command line could act on.
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def make_checkpoint(teacher: TeacherConfig, device: str) -> DiffusionCheckpoint:
    options = teacher.model_dump(include={"max_tokens", "shift", "quantization", "offload"})
    options["additions"] = Additions.of(teacher.additions)
    return DiffusionCheckpoint(teacher.path, device, find_dtype(teacher.dtype, device), **options)
