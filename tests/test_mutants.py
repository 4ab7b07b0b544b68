"""The tests of the mathematics must notice each of the mistakes that public implementations have made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LINEAR, GUIDANCE, NOISE, INJECT, CONTRASTIVE = "linear.py", "guidance.py", "noise.py", "inject.py", "contrastive.py"
LUSD = "lusd.py"

MUTANTS = {
    "null and text swapped": (LINEAR, '"edit_target": target.text,', '"edit_target": target.null,'),
    "source and target swapped": (LINEAR, '"input_source": -own,', '"input_source": own,'),
    "text + s (text - null)": (GUIDANCE, "null + guidance * (text - null)", "text + guidance * (text - null)"),
    "guidance one off": (
        LINEAR,
        '{"edit_target": guidance, "input_source": -own, "edit_null": 1 - guidance, "input_null": own - 1}',
        '{"edit_target": guidance + 1, "input_source": -own - 1, "edit_null": -guidance, "input_null": own}',
    ),
    "different noise per branch": (
        LINEAR,
        "zs_t = teacher.schedule.add_noise(z_source, eps, t)",
        "zs_t = teacher.schedule.add_noise(z_source, torch.randn_like(eps), t)",
    ),
    "the mse trick": (
        INJECT,
        "loss = (z * grad.detach()).sum(dim=(1, 2, 3)).mean()",
        "loss = 0.5 * ((z - (z - grad).detach()) ** 2).sum(dim=(1, 2, 3)).mean()",
    ),
    "mean instead of sum": (INJECT, ".sum(dim=(1, 2, 3)).mean()", ".mean(dim=(1, 2, 3)).mean()"),
    "edits in the wrong order": (LINEAR, "x.repeat_interleave(edits, dim=0)", "x[torch.arange(len(x)).repeat(edits)]"),
    "answers in the wrong order": (LINEAR, "zip(queries, predictions.split(", "zip(reversed(queries), predictions.split("),
    "v taken for eps": (NOISE, "return alpha * prediction + sigma * z_t", "return prediction"),
    "one branch's null for both": (LINEAR, '"input_null": source.null,', '"input_null": source.text,'),
    "no guidance in the source branch": (
        LINEAR,
        '"input_source": -own, "edit_null": 1 - guidance, "input_null": own - 1}',
        '"input_source": -1.0, "edit_null": 1 - guidance}',
    ),
    "the first image alone in the contrast": (CONTRASTIVE, "temperature).sum()", "temperature)[0]"),
    "the edit asked which input it was": (CONTRASTIVE, "logits.transpose(1, 2), labels", "logits, labels"),
    "the velocity's noise alone": (LINEAR, '"change": -1.0, POINT: 1.0}', "POINT: 1.0}"),
    "a moving point that stands": (LINEAR, "z_t = z_t + point * teacher.schedule.at(edit_t)[1] * change", "pass"),
    "v taken for eps in a flow": (NOISE, "return z_t + alpha * prediction", "return prediction"),
    "a direction of length zero": (
        LUSD,
        "torch.where(scale == 0, torch.zeros_like(d), guidance * d / scale)",
        "guidance * d / scale",
    ),
    "weak noise that stays": (LUSD, "t, eps = redrawn(", "redrawn("),
    "noise that all images redraw": (LUSD, ".view(len(t), -1).any(1)", ".any().expand(len(t))"),
    "the strided beta of PDS": (LINEAR, "a_t = ab_t / ab_before", "a_t = ab_t / ab_s"),
}


def run_tests(package: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    names = ("test_losses.py", "test_linear.py", "test_fixed_point.py", "test_noise.py", "test_contrastive.py")
    tests = [str(ROOT / "tests" / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package)
    assert "error" not in result.stdout.splitlines()[-1], result.stdout  # a mutant that does not even load proves nothing
    return result.returncode


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "dds_train", tmp_path / "dds_train", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    return tmp_path


def test_the_copy_passes_unchanged(package: Path) -> None:
    assert run_tests(package) == 0


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name: str, package: Path) -> None:
    file, right, wrong = MUTANTS[name]
    path = package / "dds_train" / "distillation" / file
    text = path.read_text()
    assert text.count(right) == 1, f"the code that '{name}' changes is not there any more"
    path.write_text(text.replace(right, wrong))
    assert run_tests(package) == 1
