"""Training in this process, on a tiny random teacher."""

import errno
import math
import os
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dds_train.data.batches import StatelessBatchSampler, hold_out
from dds_train.data.prompts import fill
from dds_train.data.source import Sample
from dds_train.data.synthetic import SyntheticSource
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.distillation import LOSSES
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError
from dds_train.images.files import read_image, rounded
from dds_train.training.callbacks import EMA, SampleGrid, Throughput
from dds_train.training.checkpoints import AtomicCheckpointIO, Checkpoints
from dds_train.training.data import SourceData
from dds_train.training.module import DistillationModule
from dds_train.training.schedules import Ramp
from dds_train.training.sentinels import FiniteSteps
from dds_train.training.tasks import TaskBank
from dds_train.translator import Task, TranslatorConfig, UNetTranslator, all_prompts, load_translator

SHAPE = {
    "kind": "unet",
    "latent_channels": 4,
    "text_dim": 32,
    "channels": [16, 32],
    "attention": [True, False],
    "depth": 1,
    "heads": 2,
    "groups": 8,
}


TASKS = {"lion": Task("a cat", "a lion", "a lion"), "dog": Task("a cat", "a dog", "to a dog")}


def latents() -> Dataset[Sample]:
    z = torch.randn(20, 4, 8, 8, generator=seeded_rng("latents"))
    return [{"z": one} for one in z]  # type: ignore[return-value]


def build(folder: Path, tasks: dict[str, Task] = TASKS, **changes: Any) -> DistillationModule:
    checkpoint = DiffusionCheckpoint(str(folder))
    prompts = PromptTable.of(checkpoint.text_encoder(), all_prompts(tasks.values()))
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "translator": UNetTranslator(**{k: v for k, v in SHAPE.items() if k != "kind"}),
        "teacher": checkpoint.teacher(),
        "autoencoder": checkpoint.autoencoder(),
        "tasks": TaskBank.embed(tasks, prompts),
        "loss": LOSSES["dds"],
        "guidance": Ramp(1.0, 3.0, 0.5),
        "identity": Ramp(1.0, 0.1, 1.0),
        "t_range": (50, 950),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
        "scheduler": lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
        "seed": 0,
        "translator_config": TranslatorConfig(tasks, str(folder), SHAPE),
    }
    return DistillationModule(**{**arguments, **changes})


RAW_AND_AVERAGED = ("current_model_state", "state_dict")


def trainer(
    folder: Path, max_steps: int, more: Sequence[pl.Callback] = (), checkpoints: Checkpoints | None = None, **changes: Any
) -> pl.Trainer:
    pictures = SampleGrid(4, folder / "pictures", lambda z: z[:, :3].clamp(-1, 1))
    finite = FiniteSteps(folder / "skipped.txt", patience=3)
    checkpoints = checkpoints or Checkpoints(folder / "ckpt", every=3, keep=1)
    return pl.Trainer(
        max_steps=max_steps,
        max_epochs=1,
        accelerator="cpu",
        callbacks=[*more, EMA(0.9), pictures, finite, Throughput(2), checkpoints],
        check_val_every_n_epoch=None,
        val_check_interval=min(2, max_steps) * changes.get("accumulate_grad_batches", 1),
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **changes,
    )


def fit(module: DistillationModule, trainer: pl.Trainer, resume: Path | None = None) -> dict[str, Tensor]:
    data = SourceData(latents(), batch_size=3, held_out=4, workers=0, seed=0)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_trains(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    prompts = PromptTable.of(DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder(), [*all_prompts(TASKS.values()), "blurry"])
    module = build(tiny("epsilon"), loss=LOSSES[name], tasks_per_image=2, identity=Ramp(0.0, 0.0, 1.0))
    module.tasks = TaskBank.embed(TASKS, prompts, (), "blurry")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    after = fit(module, trainer(tmp_path, 3))
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[key], before[key]) for key in after)
    assert all(p.grad is None for p in module.teacher.network.parameters())


def test_resumed_training_ends_at_the_same_weights(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    whole = fit(build(tiny("epsilon")), trainer(tmp_path / "whole", 8))
    # Stopped after 6 of 8 steps, as by a kill; 6 is a multiple of the checkpoint's interval and 8 is not.
    first = trainer(tmp_path / "parts", 8, limit_train_batches=6)
    fit(build(tiny("epsilon")), first)
    resumed = fit(build(tiny("epsilon")), trainer(tmp_path / "parts", 8), tmp_path / "parts" / "ckpt" / "last.ckpt")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_checkpoints_hold_the_translator_alone(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    module = build(tiny("epsilon"))
    fit(module, trainer(tmp_path, 5))
    path = tmp_path / "ckpt" / "last.ckpt"
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "step-0000005.ckpt"]
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 5
    assert all(name.startswith("translator.") for name in saved["state_dict"])
    # What predict reads is the average, which is also what training ends with.
    translator, card = load_translator(path)
    assert card == module.translator_config
    for name, tensor in translator.state_dict().items():
        assert torch.equal(tensor, module.translator.state_dict()[name])
        assert torch.equal(tensor, saved["state_dict"][f"translator.{name}"])
    raw = saved["current_model_state"]
    assert any(not torch.equal(raw[name], saved["state_dict"][name]) for name in raw)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["step-0000004.png", "step-0000005.png"]


def test_a_prolonged_run_keeps_no_more_checkpoints_than_asked(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Also with another interval, which is no reason to forget the earlier ones, and fewer of them."""
    last = tmp_path / "ckpt" / "last.ckpt"

    def numbered() -> list[str]:
        return sorted(path.name for path in last.parent.glob("step-*"))

    fit(build(tiny("epsilon")), trainer(tmp_path, 7, checkpoints=Checkpoints(last.parent, every=2, keep=3)))
    assert numbered() == ["step-0000004.ckpt", "step-0000006.ckpt", "step-0000007.ckpt"]
    fit(build(tiny("epsilon")), trainer(tmp_path, 8, checkpoints=Checkpoints(last.parent, every=5, keep=2)), last)
    assert numbered() == ["step-0000007.ckpt", "step-0000008.ckpt"]
    fit(build(tiny("epsilon")), trainer(tmp_path, 9, checkpoints=Checkpoints(last.parent, every=5, keep=0)), last)
    assert numbered() == []
    assert torch.load(last, weights_only=True)["global_step"] == 9


@pytest.mark.parametrize("position", [0, 1])
def test_previews_show_the_averaged_weights_and_change_nothing(
    tiny: Callable[[str], Path], tmp_path: Path, position: int
) -> None:
    """Before or after `EMA` among the callbacks."""

    def run(*previews: SampleGrid) -> tuple[DistillationModule, dict[str, Tensor], Tensor]:
        module, running = build(tiny("epsilon")), trainer(tmp_path, 5)
        running.callbacks = [c for c in running.callbacks if not isinstance(c, SampleGrid)]  # type: ignore[attr-defined]
        running.callbacks[position:position] = previews  # type: ignore[attr-defined]
        torch.manual_seed(0)
        weights = fit(module, running)
        return module, torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=True), weights | {"rng": torch.get_rng_state()}

    grid = SampleGrid(2, tmp_path / "previews", lambda z: z[:, :3].clamp(-1, 1))
    module, checkpoint, weights = run(grid)
    _, plain_checkpoint, plain_weights = run()
    assert sorted(path.stem for path in grid.folder.iterdir()) == ["step-0000002", "step-0000004", "step-0000005"]
    for state, plain in ((weights, plain_weights), *((checkpoint[key], plain_checkpoint[key]) for key in RAW_AND_AVERAGED)):
        assert all(torch.equal(state[name], plain[name]) for name in plain)
    held_out = SourceData(latents(), batch_size=3, held_out=4, workers=0, seed=0).held_out
    averaged = grid.preview(module, held_out)  # training ends with these weights
    assert torch.equal(read_image(grid.folder / "step-0000005.png"), rounded(averaged))
    module.load_state_dict(checkpoint["current_model_state"])
    assert not torch.equal(rounded(grid.preview(module, held_out)), rounded(averaged))


def test_the_teacher_is_untouched_and_the_translator_learns(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    module = build(tiny("v_prediction"))
    before = {name: tensor.clone() for name, tensor in module.teacher.network.state_dict().items()}
    start = module.translator.unet.conv_out.weight.clone()
    fit(module, trainer(tmp_path, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.teacher.network.state_dict().items())
    assert not torch.equal(start, module.translator.unet.conv_out.weight)


def test_accumulated_batches_have_noise_of_their_own(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    seen = []

    def spy(
        teacher: Any, z_source: Tensor, z_target: Tensor, source: Any, target: Any, t: Tensor, eps: Tensor, guidance: float
    ) -> Any:
        seen.append(eps.sum().item())
        return LOSSES["dds"](teacher, z_source, z_target, source, target, t, eps, guidance)

    fit(build(tiny("epsilon"), loss=spy), trainer(tmp_path, 2, accumulate_grad_batches=3, limit_val_batches=0))
    assert len(seen) == len(set(seen)) == 6


def test_the_gradient_is_that_of_dds_and_identity(tiny: Callable[[str], Path]) -> None:
    """One training step's gradient on the output, against the formula, with the teacher called by hand."""
    module = build(tiny("epsilon"), identity=Ramp(0.5, 0.5), guidance=Ramp(2.0, 2.0))
    shift = torch.randn(3, 4, 8, 8)
    output: list[Tensor] = []

    class Shifted(torch.nn.Module):
        def forward(self, z: Tensor, text: Tensor, strength: Tensor) -> Tensor:
            output.append((z + shift).requires_grad_())
            return output[0]

    module.translator = Shifted()
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    module._trainer = pl.Trainer(max_steps=10, logger=False, accelerator="cpu", enable_progress_bar=False)
    z = torch.randn(3, 4, 8, 8)
    module.training_step({"z": z, "position": [7, 8, 9]}, 0)["loss"].backward()  # type: ignore[index]
    from dds_train.distillation.rng import draw

    t, eps = draw(z.shape[1:], (50, 950), "cpu", [(0, "training", position) for position in (7, 8, 9)])
    text = DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder()
    source, target = text.condition(["a cat"] * 3), text.condition(["a dog", "a lion", "a dog"])
    grad = LOSSES["dds"](module.teacher, z, z + shift, source, target, t, eps, 2.0).grad
    assert output[0].grad is not None
    torch.testing.assert_close(output[0].grad, (grad + 0.5 * shift) / 3 / z[0].numel())


def test_ramps() -> None:
    ramp = Ramp(1.0, 7.5, 0.3)
    assert ramp(0) == 1
    assert ramp(0.15) == pytest.approx(4.25)
    assert ramp(0.3) == ramp(1) == 7.5
    assert Ramp(1.0, 7.5, 0.0)(0) == 7.5
    with pytest.raises(ValueError, match="fraction"):
        Ramp(1, 2, 1.5)


def test_batches_are_a_function_of_seed_and_step() -> None:
    def batches(**changes: int) -> list[list[tuple[int, int]]]:
        return list(StatelessBatchSampler(**{"size": 10, "batch_size": 2, "first": 0, "last": 15, "seed": 1, **changes}))

    def indices(some: list[list[tuple[int, int]]]) -> list[int]:
        return [index for _, index in chain(*some)]

    whole = batches()
    assert batches(first=7) == whole[7:]
    assert [position for position, _ in chain(*whole)] == list(range(30))
    assert sorted(indices(whole[:5])) == sorted(indices(whole[5:10])) == list(range(10))
    assert indices(whole[:5]) != indices(whole[5:10])
    assert batches(seed=2) != whole
    # Two ranks with half the batch see together what one sees alone.
    ranks = [batches(batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 images are too few"):
        hold_out([{}] * 3, 8)  # type: ignore[arg-type]


def test_templates() -> None:
    words = {"fur": ["orange", "gray"], "place": ["here"]}
    made = {fill(["a photo of a {fur} cat {place}", "a cat"], words, seeded_rng(i)) for i in range(50)}
    assert made == {"a photo of an orange cat here", "a photo of a gray cat here", "a cat"}
    with pytest.raises(UserError, match=r"words\.breed"):
        fill(["a {breed} cat"], words, seeded_rng(0))


def test_synthetic_images_do_not_depend_on_the_batch_and_are_cached(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def source(batch: int, cache: str, seed: int = 0) -> SyntheticSource:
        checkpoint = DiffusionCheckpoint(str(tiny("v_prediction")))
        return SyntheticSource(checkpoint, ["a cat"], {}, 6, 2.0, 3, batch, seed, str(tmp_path / cache))

    a, b = source(6, "a"), source(4, "b")
    a.prepare()
    b.prepare()
    assert a.folder.name == b.folder.name
    for one, other in zip(a.dataset(), b.dataset(), strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(one["z"], other["z"], atol=1e-2, rtol=1e-2)  # a pixel may round the other way
    assert all(math.isfinite(value) for value in a.dataset()[0]["z"].flatten().tolist())
    written = (a.folder / "shard-00000.tar").stat().st_mtime_ns
    source(6, "a").prepare()
    assert (a.folder / "shard-00000.tar").stat().st_mtime_ns == written
    assert source(6, "a", seed=1).folder != a.folder


class Failing(Dataset[Sample]):
    """Latents of which `index` raises an OSError, from a disk that fails."""

    def __init__(self, index: int, code: int) -> None:
        self.samples, self.index, self.code = latents(), index, code

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Sample:
        if index == self.index:
            raise OSError(self.code, os.strerror(self.code))
        return self.samples[index]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_failing_disk_stops_training_and_a_missing_file_does_not(
    tiny: Callable[[str], Path], tmp_path: Path, workers: int, code: int
) -> None:
    data = SourceData(Failing(9, errno.ENOENT), batch_size=3, held_out=4, workers=workers, seed=0)
    trainer(tmp_path / "missing", 6, limit_val_batches=0).fit(build(tiny("epsilon")), datamodule=data)
    data = SourceData(Failing(9, code), batch_size=3, held_out=4, workers=workers, seed=0)
    with pytest.raises(UserError, match=rf"^data: sample 9: cannot be read \({os.strerror(code)}\); .* and run"):
        trainer(tmp_path / "failing", 6, limit_val_batches=0).fit(build(tiny("epsilon")), datamodule=data)
    with pytest.raises(UserError, match="data: sample 2: cannot be read"):
        SourceData(Failing(2, code), batch_size=3, held_out=4, workers=workers, seed=0)
