"""Steps whose gradient is not finite and samples that cannot be read: left out, recorded, counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from dds_train.errors import UserError
from dds_train.training.agreement import gathered, step_ends, summed


class Report:
    """A text file of a run's own events: after a resume it has those up to the checkpoint, so that none is there twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []  # the same on all ranks, of which the first writes

    def start(self, trainer: pl.Trainer) -> None:
        """Make the file what `lines` are, whatever an earlier part of the run has left."""
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
            self._write(self.lines)

    def add(self, trainer: pl.Trainer, lines: Sequence[str]) -> None:
        self.lines += lines
        if trainer.is_global_zero:
            self._write(lines)

    def _write(self, lines: Sequence[str]) -> None:
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in lines)


class FiniteSteps(Callback):
    """Skips steps whose gradient is not finite, records them in `path`, and stops the run after `patience` of them in a row.

    All ranks decide alike, by the gradients that they share. The images whose edits are not finite are named, or all of the
    step if the gradient alone is not.

    Raises:
        UserError: from training, after `patience` such steps in a row.
    """

    def __init__(self, path: Path, patience: int = 10) -> None:
        self.report, self.patience = Report(path), patience
        self.in_a_row = 0
        self._skipped = False
        # Of this step: positions, and whether their edits are finite, [B] each.
        self._batches: list[tuple[list[int], Tensor]] = []

    @property
    def total(self) -> int:
        return len(self.report.lines)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "lines": self.report.lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row, self.report.lines = state_dict["in_a_row"], list(state_dict["lines"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.report.start(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        total = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())
        self._skipped = not torch.isfinite(total)
        for parameter in pl_module.parameters() if self._skipped else ():
            parameter.grad = None  # which optimisers skip altogether: no decay, no momentum

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "finite" in outputs:
            self._batches.append((batch["position"], outputs["finite"]))
        if not step_ends(trainer, batch_idx):
            return
        batches, self._batches = self._batches, []
        self.in_a_row = self.in_a_row + 1 if self._skipped else 0
        if not self._skipped:
            return
        images = [pair for positions, finite in batches for pair in zip(positions, finite.tolist(), strict=True)]
        self._record(trainer, [p for p, finite in images if not finite], [p for p, _ in images])
        if self.in_a_row >= self.patience:
            raise UserError(
                f"{self.in_a_row} steps in a row had gradients that are not finite: lower lr or guidance.end, or take "
                "teacher.dtype=float32 and trainer.precision=32-true"
            )

    def _record(self, trainer: pl.Trainer, culprits: list[int], images: list[int]) -> None:
        ranks = gathered(trainer, (culprits, images))
        known = any(of_rank for of_rank, _ in ranks)
        found = [of_rank if known else all_of_rank for of_rank, all_of_rank in ranks]
        names: Any = trainer.datamodule.names  # type: ignore[attr-defined]
        of_rank = (f"rank {rank}: " if len(ranks) > 1 else "" for rank in range(len(ranks)))
        named = "; ".join(start + ", ".join(names(p)) for start, p in zip(of_rank, found, strict=True) if p)
        self.report.add(trainer, [f"step {trainer.global_step - 1}: gradient not finite, skipped; images {named}"])
        if self.total == 1 and trainer.is_global_zero:
            print(f"\nsentinel: {self.report.lines[0]}; see {self.report.path}", flush=True)


class BadSamples(Callback):
    """Records every bad sample in `path`, and stops the run if they are more than a fraction `limit` of the data set.

    Samples of all ranks count. A failure to read that no sample is responsible for stops all ranks together.

    Raises:
        UserError: from training, for either reason.
    """

    def __init__(self, path: Path, limit: float = 0.1) -> None:
        self.report, self.limit = Report(path), limit
        self._seen: set[str] = set()
        self._size = 0  # of the data set that they are of
        self._new: dict[str, None] = {}  # reasons of this rank since the last step
        self._failed = ""

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.report.lines, "size": self._size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.report.lines, self._size = list(state_dict["lines"]), state_dict["size"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(set(gathered(trainer, trainer.datamodule.fingerprint))) > 1:  # type: ignore[attr-defined]
            raise UserError("data: ranks see different shards, since some cannot be had; run the same command again")
        size: int = trainer.datamodule.size  # type: ignore[attr-defined]
        if size != self._size:  # the checkpoint of a run on other data
            self.report.lines, self._size = [], size
        self._seen = set(self.report.lines)
        self.report.start(trainer)
        self._note(trainer.datamodule.held_out["bad"])  # type: ignore[attr-defined]
        self._agree(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(batch["bad"])
        self._failed = self._failed or batch.get("failed", "")
        if step_ends(trainer, batch_idx):
            self._agree(trainer)

    def _note(self, reasons: Sequence[str]) -> None:
        self._new |= dict.fromkeys(reason for reason in reasons if reason not in self._seen)

    def _agree(self, trainer: pl.Trainer) -> None:
        own, self._new = list(self._new), {}
        new, failed = summed(trainer, [len(own), bool(self._failed)])
        if failed:
            raise UserError(self._failed or "data: another rank can no longer read it")
        if not new:
            return
        found = list(dict.fromkeys(reason for of_rank in gathered(trainer, own) for reason in of_rank))
        self._seen.update(found)
        self.report.add(trainer, found)
        if len(self._seen) > self.limit * self._size:
            raise UserError(
                f"data: {len(self._seen)} of {self._size} samples cannot be read, more than max_bad_fraction={self.limit:g}; "
                f"see {self.report.path} (the last: {found[-1]})"
            )
