"""The training step: translate, score with the teacher, inject the gradient."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dds_train.diffusion import Autoencoder, Teacher
from dds_train.distillation import Distilled, Loss
from dds_train.distillation.rng import draw
from dds_train.errors import UserError
from dds_train.training.schedules import Ramp
from dds_train.training.tasks import TaskBank
from dds_train.translator import TranslatorConfig
from dds_train.translator.files import CONFIG_KEY, all_finite


class DistillationModule(pl.LightningModule):
    """Trains a translator to make, in one pass, the edit that score distillation would make step by step.

    Args:
        translator: the only part that is trained, saved and averaged.
        teacher: frozen; its predictions for input and output make the gradient.
        autoencoder: needed for batches of pixels; None for batches of latents.
        tasks: the edits to learn, in turns.
        tasks_per_image: edits of each image in a batch; they share its source branch.
        loss: see `distillation.make_loss`.
        guidance: classifier-free guidance scale over training. A warm-up from 1 keeps the network from collapsing to one
            output for every input (project page of arXiv 2304.07090).
        identity: weight, over training, of ``0.5 |z_target - z_source|^2``; its gradient is in the units of G.
        t_range: timesteps sampled, first included, last excluded.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> learning-rate scheduler, stepped at every training step.
        seed: of the noise.
        translator_config: goes into every checkpoint.
    """

    def __init__(
        self,
        *,
        translator: nn.Module,
        teacher: Teacher,
        autoencoder: Autoencoder | None,
        tasks: TaskBank,
        tasks_per_image: int = 1,
        loss: Loss,
        guidance: Ramp,
        identity: Ramp,
        t_range: tuple[int, int],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler],
        seed: int,
        translator_config: TranslatorConfig,
    ) -> None:
        super().__init__()
        self.translator = translator
        self.teacher, self.autoencoder = teacher, autoencoder
        self.tasks, self.tasks_per_image = tasks, tasks_per_image
        self.loss, self.guidance, self.identity, self.t_range = loss, guidance, identity, t_range
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.seed, self.translator_config = seed, translator_config
        self.should_stop: Callable[[], bool] = bool  # whether to end a validation at once; asked on all ranks alike

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor] | Tensor:
        if not batch["position"]:  # every sample of it was bad
            return torch.stack([p.sum() for p in self.translator.parameters()]).sum() * 0.0
        z_source = self.encode(batch)
        task = self.tasks.pick(batch["position"], self.tasks_per_image)
        z_target = self.translate(z_source, task)
        distilled = self.distill(z_source, z_target, task, batch, self.guidance(self.progress))
        change = z_target - z_source.repeat_interleave(self.tasks_per_image, dim=0)
        identity = self.identity(self.progress)
        loss = distilled.loss + identity * 0.5 * change.square().sum(dim=(1, 2, 3)).mean()

        self.log("loss/grad_rms", distilled.grad_rms, prog_bar=True)
        self.log("loss/change_rms", change.detach().square().mean().sqrt(), prog_bar=True)
        self.log_dict({"schedule/guidance": self.guidance(self.progress), "schedule/identity": identity})
        return {
            # Per latent element, so that gradient clipping means the same at every image size.
            "loss": loss / z_source[0].numel(),
            "z_source": z_source,
            "z_target": z_target.detach(),
            "finite": (distilled.grad + z_target.detach()).isfinite().view(len(z_source), -1).all(1),  # [B]
        }

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The averaged weights on held-out images, at noise and guidance that are the same over the whole training."""
        z_source = self.encode(batch)
        gradients, shifts = [], []
        for number in range(len(self.tasks.names)):
            if self.should_stop():
                return
            task = self.repeat_task(number, len(z_source))
            z_target = self.translate(z_source, task)
            distilled = self.distill(z_source, z_target, task, batch, self.guidance(1.0), "validation")
            gradients.append(distilled.grad_rms)
            shifts.append((z_target - z_source).square().mean().sqrt())
        self.log("val/grad_rms", torch.stack(gradients).mean(), batch_size=1)
        self.log("val/shift_rms", torch.stack(shifts).mean(), batch_size=1)

    def distill(
        self,
        z_source: Tensor,
        z_target: Tensor,
        task: Tensor,
        batch: dict[str, Any],
        guidance: float,
        use: str = "training",
    ) -> Distilled:
        """The loss of edits z_target [B*M,C,h,w] of z_source [B,C,h,w]; an image's noise depends on its position alone."""
        t, eps = draw(z_source.shape[1:], self.t_range, self.device, [(self.seed, use, p) for p in batch["position"]])
        edits, caption = len(task) // len(z_source), batch.get("caption")
        if caption is not None:
            caption = caption.repeat_interleave(edits)
        source, target = self.tasks.conditions(task, caption)
        if self.tasks.one_source:
            source = source[::edits]
        else:  # then an image has as many source branches as tasks
            z_source, t, eps = (x.repeat_interleave(edits, dim=0) for x in (z_source, t, eps))
        return self.loss(self.teacher, z_source, z_target, source, target, t, eps, guidance)

    def translate(self, z_source: Tensor, task: Tensor) -> Tensor:
        """The full edits, [B*M,C,h,w], of latents [B,C,h,w]: M tasks for each, those of one image following one another."""
        z = z_source.repeat_interleave(len(task) // len(z_source), dim=0)
        output: Tensor = self.translator(z, self.tasks.instruction[task], torch.ones(len(z), device=z.device))
        return output

    def repeat_task(self, task: int, count: int) -> Tensor:
        """Task number `task` for `count` images, [count]."""
        return torch.full((count,), task)

    def encode(self, batch: dict[str, Any]) -> Tensor:
        """{"z": latents [B,C,h,w]} or {"image": pixels [B,3,H,W] in [-1,1]} -> latents [B,C,h,w]."""
        if "z" in batch:
            output: Tensor = batch["z"].to(self.device)
            return output
        assert self.autoencoder is not None, "batches of pixels need a VAE"
        return self.autoencoder.encode(batch["image"])

    @property
    def progress(self) -> float:
        return self.trainer.global_step / self.trainer.max_steps

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        self.tasks = self.tasks.to(self.device)
        if self.autoencoder is not None:
            self.autoencoder.to(self.device)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.translator.parameters())
        scheduler = self.make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if there are no finite weights to save."""
        for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
            if not all_finite(state.values()):
                raise UserError(
                    f"training step {checkpoint['global_step']}: the weights are NaN or Inf, and not saved; lower lr, or take "
                    "trainer.precision=32-true; the same command resumes from the last checkpoint before it"
                )
        checkpoint[CONFIG_KEY] = self.translator_config.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if the optimizer's state is that of another one."""
        own, saved = self.make_optimizer(self.translator.parameters()).state_dict(), checkpoint["optimizer_states"][0]
        if own["param_groups"][0].keys() != saved["param_groups"][0].keys() - {"initial_lr"}:
            raise UserError("optimizer: not the one that the checkpoint was trained with; take that one, or start a new run")
        # A complete run can be prolonged by a larger max_steps: what was its last batch then is not the last now.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
