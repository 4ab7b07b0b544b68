"""export, as a user types it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from shell import fit, run

from dds_train.critters.render import render
from dds_train.critters.world import critter


@pytest.mark.slow
def test_export(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    fit(tiny("epsilon"), tmp_path)
    Image.fromarray(render(critter(0, species="cat"), 64)).save(tmp_path / "cat.png")
    for form, files in (
        ("safetensors", {"config.json", "translator.safetensors"}),
        ("diffusers", {"model_index.json", "pipeline.py", "unet", "vae"}),
        ("onnx", {"translator.onnx", "run.py", "tasks.npz"}),
    ):
        printed = run("export", "ckpt=run/translator", f"format={form}", "examples=cat.png", f"output_dir={form}", cwd=tmp_path)
        assert files | {"README.md", "examples.png"} <= {path.name for path in (tmp_path / form).iterdir()}
        assert ("differs from PyTorch by at most" in printed) == (form == "onnx")
        card = (tmp_path / form / "README.md").read_text()
        assert "4 training steps of 2 images" in card
        assert "grad_rms" in card
    run("predict", "ckpt=safetensors", "image=cat.png", "output_dir=lion", cwd=tmp_path)
    for wrong, says in (("format=pt", "take safetensors"), ("push=nobody/nothing", "the hub did not take")):
        printed = run("export", "ckpt=run/translator", wrong, "output_dir=other", cwd=tmp_path, code=2)
        assert says in printed
        assert "Traceback" not in printed
