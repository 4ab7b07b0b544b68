"""The network that is trained, and how it is saved and loaded."""

from dds_train.translator.files import (
    TranslatorConfig,
    export_translator,
    load_translator,
    read_config,
    read_step,
    read_weights,
    weights_digest,
)
from dds_train.translator.kinds import KINDS, TranslatorNetwork, make_translator, translate_latents
from dds_train.translator.location import find_translator, remembered
from dds_train.translator.lora import LoRATranslator
from dds_train.translator.task import Task, all_prompts, make_tasks
from dds_train.translator.teacher_init import TeacherInitTranslator
from dds_train.translator.unet import UNetTranslator

__all__ = [
    "KINDS",
    "LoRATranslator",
    "Task",
    "TeacherInitTranslator",
    "TranslatorConfig",
    "TranslatorNetwork",
    "UNetTranslator",
    "all_prompts",
    "export_translator",
    "find_translator",
    "load_translator",
    "make_tasks",
    "make_translator",
    "read_config",
    "read_step",
    "read_weights",
    "remembered",
    "translate_latents",
    "weights_digest",
]
