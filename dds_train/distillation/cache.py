"""The teacher's answers about an input, kept for later edits of that input: exact, for they do not depend on the edit."""

import hashlib
from collections.abc import MutableMapping

import torch
from torch import Tensor

from dds_train.distillation.noise import NoiseSchedule, ScoreModel


class SourceCache:
    """A score model that remembers its answers about inputs.

    An answer is found by what went in: the model, its precision, the noised latent (hence image, step and seed) and the prompt.
    Inputs and edits are evaluated apart, so that a later edit gives the same bits whether its inputs were remembered or not.

    Args:
        teacher: the frozen model.
        store: where answers [C,h,w] are kept: a dict, or something on disk.
        model: tells teachers apart, weights and precision; of no use in a store that no other teacher shares.
    """

    def __init__(self, teacher: ScoreModel, store: MutableMapping[str, Tensor], model: str = "") -> None:
        self.teacher, self.store, self.model = teacher, store, model
        self.found = self.asked = 0

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def predict_eps(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """z_t [N,C,h,w], integer t [N], text [N,L,D] -> predicted noise [N,C,h,w]; nothing is remembered."""
        return self.teacher.predict_eps(z_t, t, text)

    def features(self, z_t: Tensor, t: Tensor, text: Tensor) -> list[Tensor]:
        """As those of a `FeatureModel`; not remembered."""
        return self.teacher.features(z_t, t, text)  # type: ignore[attr-defined,no-any-return]

    @torch.no_grad()
    def predict_input(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The same for inputs: only what is asked for the first time is evaluated, in one batched call."""
        keys = [self.key(*row) for row in zip(z_t, t, text, strict=True)]
        answers = {key: self.store[key].to(z_t.device) for key in set(keys) if key in self.store}
        new = {key: row for row, key in enumerate(keys) if key not in answers}
        self.asked, self.found = self.asked + len(keys), self.found + len(keys) - len(new)
        if new:
            rows = torch.tensor(list(new.values()), device=z_t.device)
            for key, answer in zip(new, self.teacher.predict_eps(z_t[rows], t[rows], text[rows]), strict=True):
                self.store[key] = answers[key] = answer.clone()
        return torch.stack([answers[key] for key in keys])

    def key(self, z_t: Tensor, t: Tensor, text: Tensor) -> str:
        digest = hashlib.sha256(f"{self.model}/{z_t.dtype}/{tuple(z_t.shape)}/{int(t)}".encode())
        for tensor in (z_t, text):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
