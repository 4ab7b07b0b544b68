"""The claim of a training run on its folder: with which settings a run there resumes, is finished, or is refused."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.runs.digest import digest
from dds_train.runs.record import Record
from dds_train.training.checkpoints import ResumePoint, find_checkpoint
from dds_train.translator import TranslatorConfig, read_config
from dds_train.translator.files import OtherFormat

# Settings that may differ from those of the run in the folder; trainer.max_steps may only grow.
FREE = (
    "trainer.max_steps", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator",
    "trainer.enable_progress_bar", "scheduler.num_training_steps", "workers", "device", "gradient_checkpointing", "logger",
    "log_every", "preview_every", "validate_every", "checkpoint_every", "keep_checkpoints", "preview", "validation", "best",
    "sentinels", "max_bad_fraction", "data.batch_size", "data.cache", "data.cache_dir", "resume", "output_dir",
)  # fmt: skip
# Files of a run, which resume=never moves aside.
FILES = (
    "checkpoints", "translator", "previews", "metrics*.csv", "config.yaml", "bad_samples.txt", "skipped_steps.txt",
    "tensorboard", "wandb",
)  # fmt: skip


class TrainingClaim:
    """The settings of a run, by which `record` knows it.

    Args:
        settings: the whole configuration.
        checkpoint: the teacher's, which is known by its weights.

    Raises:
        UserError: if the folder holds a run with other settings, one with more training steps, or one of another version.
    """

    def __init__(self, record: Record, settings: Mapping[str, Any], checkpoint: DiffusionCheckpoint) -> None:
        self.record = record
        self.resume: ResumePoint | None = find_checkpoint(settings["resume"], record.folder / "checkpoints")
        self.mode, self.max_steps = settings["resume"], settings["trainer"]["max_steps"]
        precision = [settings["teacher"][key] for key in ("dtype", "quantization")]
        self.teacher: dict[str, str] = {"dtype": ", ".join(filter(None, precision))}
        for part in ("denoiser", "scheduler", "vae", "text"):
            with contextlib.suppress(UserError):  # not there, and perhaps not needed
                self.teacher[part] = checkpoint.digest(part)
        occupied = self.mode != "never" and any((record.folder / "checkpoints").glob("*.ckpt"))
        self.terms: dict[str, Any] = {
            "settings": {**settings, "teacher": self.teacher},
            "free": FREE,
            "growing": ["teacher"],
            "occupied": occupied,
            "remedy": "give another output_dir, or resume=never to start over",
        }
        if self.mode != "never":
            record.check(**self.terms)
            self._check_format()
        if self.resume and self.resume.step > self.max_steps and not self.is_finished:
            raise UserError(
                f"trainer.max_steps={self.max_steps}: {self.resume.path} has {self.resume.step} training steps; "
                "give at least as many, another output_dir, or resume=never to start over"
            )

    def _check_format(self) -> None:
        """Refuse to replace a translator of another version."""
        try:
            read_config(self.record.folder / "translator")
        except OtherFormat:
            raise
        except UserError:
            pass  # none there, or a damaged one

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds the translator of this very run."""
        return self.mode != "never" and self.record.is_done("translator", self._result)

    def check_resumed(self, config: TranslatorConfig) -> None:
        """Refuse a checkpoint of another folder whose tasks, translator or teacher are others."""
        if self.resume is None or self.mode == "auto":
            return
        for field in ("tasks", "translator"):
            before, now = getattr(self.resume.config, field), getattr(config, field)
            if before != now:
                raise UserError(f"resume={self.resume.path}: was trained with other {field} ({before!r}, now {now!r})")
        known = Record(self.resume.path.absolute().parents[1], "fit").settings.get("teacher", {})
        if any(known[part] != self.teacher[part] for part in known.keys() & self.teacher.keys()):
            raise UserError(f"resume={self.resume.path}: was trained with another teacher than teacher.path={config.teacher}")

    def start(self) -> None:
        """Record that the folder is this run's."""
        if self.mode == "never":
            self.record.start_over(FILES)
        self.record.claim(**self.terms)

    def finish(self, steps: int) -> None:
        """Record the translator, which has just been exported."""
        files = [f"translator/{name}" for name in ("translator.safetensors", "config.json")]
        self.record.add("translator", self._result, files, {"steps": steps})

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def _result(self) -> str:
        return digest({"max_steps": self.max_steps})
