"""A cache of teacher predictions for source images: exact, because they do not depend on the edit."""

import hashlib
from collections.abc import MutableMapping

import torch
from torch import Tensor

from dds_train.distillation.noise import NoiseSchedule, ScoreModel
from dds_train.distillation.prompt import Prompt


class SourceCache:
    """A score model that caches its predictions for inputs.

    The key of a prediction is everything it depends on: model, precision, noised latent (hence image, timestep and seed) and
    prompt. Inputs and edits are evaluated in separate calls, so that a later edit gets the same bits with a warm cache as with
    a cold one.

    Args:
        teacher: the frozen model.
        store: predictions [C,h,w] by key: a dict, or something on disk.
        model: identifies the teacher's weights and precision, for a store that several teachers share.
    """

    def __init__(self, teacher: ScoreModel, store: MutableMapping[str, Tensor], model: str = "") -> None:
        self.teacher, self.store, self.model = teacher, store, model
        self.hits = self.queries = 0

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """z_t [N,C,h,w], integer t [N], N prompts -> predicted noise [N,C,h,w]; not cached."""
        return self.teacher.predict_eps(z_t, t, prompt)

    def features(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> list[Tensor]:
        """As those of a `FeatureModel`; not cached."""
        return self.teacher.features(z_t, t, prompt)  # type: ignore[attr-defined,no-any-return]

    @torch.no_grad()
    def predict_input(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """`predict_eps` for inputs, cached: new rows alone are evaluated, in one batched call."""
        keys = [self.key(z_t[i : i + 1], t[i : i + 1], prompt[i : i + 1]) for i in range(len(z_t))]
        predictions = {key: self.store[key].to(z_t.device) for key in set(keys) if key in self.store}
        new = {key: row for row, key in enumerate(keys) if key not in predictions}
        self.queries, self.hits = self.queries + len(keys), self.hits + len(keys) - len(new)
        if new:
            rows = torch.tensor(list(new.values()), device=z_t.device)
            for key, eps in zip(new, self.teacher.predict_eps(z_t[rows], t[rows], prompt[rows]), strict=True):
                self.store[key] = predictions[key] = eps.clone()
        return torch.stack([predictions[key] for key in keys])

    def key(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> str:
        """Of one row: z_t [1,C,h,w], t [1], one prompt."""
        digest = hashlib.sha256(f"{self.model}/{int(t)}".encode())
        for name, tensor in [("z_t", z_t), *sorted(prompt.items())]:
            digest.update(f"/{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
