"""A translator that nobody trained, on a tiny teacher."""

from pathlib import Path

import torch

from dds_train.translator import Task, TranslatorConfig, UNetTranslator, export_translator


def export_random(folder: Path, teacher: Path, tasks: dict[str, Task], std: float) -> Path:
    """`folder`, with random weights: its edits mean nothing, but are the same every time."""
    torch.manual_seed(0)
    network = UNetTranslator(4, 32, channels=[16, 32], attention=[True, False], depth=1, heads=2, groups=8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    export_translator(folder, network, TranslatorConfig(tasks, str(teacher), network.config))
    return folder
