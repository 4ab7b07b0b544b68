"""The training step: edit, ask the teacher, follow its gradient."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dds_train.distillation.guidance import Condition
from dds_train.distillation.losses import Loss
from dds_train.distillation.rng import draw
from dds_train.frozen import Codec, Teacher
from dds_train.training.schedules import Ramp
from dds_train.translator.checkpoint import TranslatorCard


@dataclass(frozen=True)
class Task:
    """One edit, as embeddings of one prompt each."""

    source: Condition  # [1,L,D], what the inputs show
    target: Condition  # [1,L,D], what is wanted
    instruction: Tensor  # [1,L,D], what the translator is told

    def to(self, device: torch.device) -> "Task":
        def move(condition: Condition) -> Condition:
            return Condition(condition.text.to(device), condition.null.to(device))

        return Task(move(self.source), move(self.target), self.instruction.to(device))


class DistillationModule(pl.LightningModule):
    """Trains a translator to make, in one pass, the edit that score distillation would make step by step.

    Args:
        translator: the only part that is trained, saved and averaged.
        teacher: frozen; its opinion of input and output is the gradient.
        codec: needed for batches of pixels; batches of latents do without (None).
        loss: an entry of `distillation.LOSSES`, its own options bound.
        guidance: classifier-free guidance scale over training. A warm-up from 1 keeps the network from collapsing to one
            output for every input (project page of arXiv 2304.07090).
        identity: weight, over training, of ``0.5 |z_target - z_source|^2``; its gradient is in the units of G.
        t_range: steps drawn, first included, last excluded.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> learning-rate scheduler, stepped at every step.
        seed: of the noise.
        card: what `predict` has to know; goes into every checkpoint.
    """

    def __init__(
        self,
        *,
        translator: nn.Module,
        teacher: Teacher,
        codec: Codec | None,
        task: Task,
        loss: Loss,
        guidance: Ramp,
        identity: Ramp,
        t_range: tuple[int, int],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        seed: int,
        card: TranslatorCard,
    ) -> None:
        super().__init__()
        self.translator = translator
        self.teacher, self.codec, self.task = teacher, codec, task
        self.loss, self.guidance, self.identity, self.t_range = loss, guidance, identity, t_range
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.seed, self.card = seed, card
        # Of this rank, across resumes. Keys the noise: `global_step` stands still while gradients accumulate.
        self.batches_done = 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        z_source = self.encode(batch)
        z_target = self.translate(z_source)
        t, eps = draw(z_source.shape, self.t_range, self.device, self.seed, self.global_rank, self.batches_done)
        source, target = self.task.source.expand(len(t)), self.task.target.expand(len(t))
        guidance, identity = self.guidance(self.progress), self.identity(self.progress)

        distilled = self.loss(self.teacher, z_source, z_target, source, target, t, eps, guidance)
        change = z_target - z_source
        loss = distilled.loss + identity * 0.5 * change.square().sum(dim=(1, 2, 3)).mean()

        self.log("loss/grad_rms", distilled.grad_rms, prog_bar=True)
        self.log("loss/change_rms", change.detach().square().mean().sqrt(), prog_bar=True)
        self.log_dict({"schedule/guidance": guidance, "schedule/identity": identity})
        # Per latent element, so that gradient clipping means the same at every image size.
        return loss / z_source[0].numel()

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        """{"z": latents [B,C,h,w]} or {"image": pixels [B,3,H,W] in [-1,1]} -> latents [B,C,h,w]."""
        if "z" in batch:
            return batch["z"]
        assert self.codec is not None, "batches of pixels need a codec"
        return self.codec.encode(batch["image"])

    def translate(self, z: Tensor) -> Tensor:
        """The full edit of latents [B,C,h,w]."""
        text = self.task.instruction.expand(len(z), -1, -1)
        return self.translator(z, text, torch.ones(len(z), device=z.device))

    @property
    def progress(self) -> float:
        return self.trainer.global_step / self.trainer.max_steps

    def on_train_start(self) -> None:
        self.batches_done = self.trainer.global_step * self.trainer.accumulate_grad_batches

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches_done += 1

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        self.task = self.task.to(self.device)
        if self.codec is not None:
            self.codec.to(self.device)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.translator.parameters())
        scheduler = self.make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["card"] = asdict(self.card)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A complete run can be prolonged by a larger max_steps: what was its last batch then is not the last now.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
