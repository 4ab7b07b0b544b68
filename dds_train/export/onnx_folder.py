"""One ONNX graph, from pixels to pixels."""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from dds_train.diffusion import Autoencoder, DiffusionCheckpoint
from dds_train.export import standalone_onnx
from dds_train.translator import TranslatorConfig, TranslatorNetwork

LARGEST = 8192  # pixels of a side


class PixelsToPixels(nn.Module):
    """VAE encoder, translator, VAE decoder."""

    def __init__(self, autoencoder: Autoencoder, unet: nn.Module) -> None:
        super().__init__()
        self.vae, self.unet, self.family = autoencoder.network, unet, autoencoder.family

    def forward(self, image: Tensor, text: Tensor, strength: Tensor) -> Tensor:
        """image [B,3,H,W] in [-1,1], text [B,L,D], strength [B] -> [B,3,H,W]."""
        z = self.family.encode(self.vae, image)
        change: Any = self.unet(z, 0, encoder_hidden_states=text).sample
        z = z + strength.view(-1, 1, 1, 1) * change
        return self.family.decode(self.vae, z).clamp(-1, 1)


@dataclass(frozen=True)
class Checked:
    difference: float  # the largest between onnxruntime's pixels and PyTorch's, in levels of 0 to 255
    shapes: list[tuple[int, ...]]  # of the images it was measured on


def export_onnx(folder: Path, network: TranslatorNetwork, card: TranslatorConfig, parts: DiffusionCheckpoint) -> Checked:
    """translator.onnx, the tasks' prompt embeddings (tasks.npz), settings.json and run.py. Batch, height and width may be any
    that the networks' strides divide. Ends with a run of the file by onnxruntime on images of several shapes."""
    unet, autoencoder, text = network.plain_unet(), parts.autoencoder(), parts.text_encoder()
    graph = PixelsToPixels(autoencoder, unet.to(autoencoder.device)).eval()
    multiple = autoencoder.factor * network.stride
    embeddings = {name: text.embed(task.instruction)["text"] for name, task in card.tasks.items()}
    length, width = next(iter(embeddings.values())).shape[1:]

    def example(batch: int, height: int, width_: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = torch.Generator().manual_seed(batch)
        image = torch.rand(batch, 3, height * multiple, width_ * multiple, generator=rng) * 2 - 1
        some = torch.randn(batch, length, width, generator=rng)
        return image, some, torch.rand(batch, generator=rng)

    batch = Dim("batch", min=1, max=1024)
    sides = {
        2: multiple * Dim("height", min=1, max=LARGEST // multiple),
        3: multiple * Dim("width", min=1, max=LARGEST // multiple),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            graph,
            example(2, 2, 3),
            dynamo=True,
            verbose=False,
            input_names=["image", "text", "strength"],
            output_names=["edited"],
            dynamic_shapes=({0: batch, **sides}, {0: batch}, {0: batch}),
        )
    assert program is not None, "the exporter returns a program when dynamo is on"
    program.save(folder / "translator.onnx")
    np.savez(folder / "tasks.npz", **{name: row.cpu().numpy() for name, row in embeddings.items()})  # type: ignore[arg-type]
    (folder / "settings.json").write_text(
        json.dumps({"tasks": list(card.tasks), "multiple": multiple}, indent=2) + "\n", encoding="utf-8"
    )
    shutil.copyfile(str(standalone_onnx.__file__), folder / "run.py")

    session, worst, shapes = onnxruntime.InferenceSession(folder / "translator.onnx"), 0.0, []
    for sizes in ((1, 4, 4), (3, 2, 5)):
        inputs = example(*sizes)
        with torch.no_grad():
            expected = graph(*inputs)
        (got,) = session.run(None, dict(zip(("image", "text", "strength"), (one.numpy() for one in inputs), strict=True)))
        worst = max(worst, (torch.from_numpy(got) - expected).abs().max().item() * 127.5)
        shapes.append(tuple(inputs[0].shape))
    return Checked(worst, shapes)
