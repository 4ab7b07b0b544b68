"""Previews during training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import RAW_AND_AVERAGED, build, fit, latents, trainer

from dds_train.images.files import read_image, rounded
from dds_train.training.callbacks import SampleGrid
from dds_train.training.data import SourceData
from dds_train.training.module import DistillationModule


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
