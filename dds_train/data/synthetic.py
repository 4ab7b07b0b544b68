"""Source images that the teacher draws itself: training needs no pictures at all."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from dds_train.data.images import save_image, strip
from dds_train.data.source import Sample
from dds_train.distillation.rng import generator
from dds_train.errors import UserError
from dds_train.frozen import Pretrained, sample_latents

PREVIEW = 64


class SyntheticSource:
    """Images sampled once from prompts, kept as latents in a cache folder named after everything they depend on.

    Args:
        pretrained: the teacher.
        prompts: templates; "a photo of a {fur} cat" takes one of ``words["fur"]``. Each image draws its own.
        words: what fills the templates.
        count: images.
        guidance, steps: of the sampling.
        batch: images at a time; does not change what is drawn.
        seed: image i depends on (seed, i).
        cache: folder for the results of all such calls; ~/.cache/dds_train if not given.

    Raises:
        UserError: for a template whose words are missing.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        prompts: Sequence[str],
        words: Mapping[str, Sequence[str]],
        count: int,
        guidance: float,
        steps: int,
        batch: int,
        seed: int,
        cache: str | None,
    ) -> None:
        self.pretrained, self.steps, self.guidance, self.batch, self.seed = pretrained, steps, guidance, batch, seed
        self.prompts = [fill(prompts, words, generator(seed, "prompt", i)) for i in range(count)]
        key = [pretrained.fingerprint(), self.prompts, guidance, steps, seed]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = Path(cache or "~/.cache/dds_train").expanduser() / "synthetic" / name

    def prepare(self) -> None:
        if not (self.folder / "latents.safetensors").exists():
            self._draw()

    def dataset(self) -> Dataset[Sample]:
        return _Latents(load_file(self.folder / "latents.safetensors")["z"])

    def _draw(self) -> None:
        teacher, codec, text = self.pretrained.teacher(), self.pretrained.codec(), self.pretrained.text_encoder()
        scheduler = self.pretrained.sampler()
        latents: list[Tensor] = []
        preview: list[Tensor] = []
        total = len(self.prompts)
        with tqdm(total=total, desc="drawing source images", unit="image") as bar:
            for start in range(0, total, self.batch):
                indices = range(start, min(start + self.batch, total))
                condition = text.condition([self.prompts[i] for i in indices])
                seeds = [self.seed * 1_000_003 + i for i in indices]
                z = sample_latents(teacher, scheduler, condition, seeds, steps=self.steps, guidance=self.guidance)
                # Through the codec once, since that is where the inputs of `predict` come from.
                image = codec.decode(z)
                latents.append(codec.encode(image).cpu())
                preview.append(image[: max(0, PREVIEW - start)].cpu())
                bar.update(len(z))
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(strip(torch.cat(preview).split(8)), self.folder / "preview.png")
        (self.folder / "prompts.txt").write_text("\n".join(self.prompts) + "\n")
        partial = self.folder / f"latents.{os.getpid()}.partial"
        save_file({"z": torch.cat(latents).contiguous()}, partial)
        os.replace(partial, self.folder / "latents.safetensors")


def fill(templates: Sequence[str], words: Mapping[str, Sequence[str]], rng: torch.Generator) -> str:
    """One of the templates with one of the words in each place, and "a" before a vowel mended to "an"."""

    def pick(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=rng))]

    template = pick(templates)
    filled = ""
    for literal, name, _, _ in Formatter().parse(template):
        filled += literal
        if name is None:
            continue
        if not words.get(name):
            raise UserError(f"data.prompts: '{template}' needs a list data.words.{name}")
        word = pick(words[name])
        if filled.endswith((" a ", "A ")) and word[:1].lower() in "aeiou":
            filled = filled[:-1] + "n "
        filled += word
    return filled


class _Latents(Dataset[Sample]):
    def __init__(self, z: Tensor) -> None:
        self.z = z

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: int) -> Sample:
        return {"z": self.z[index]}
