"""The tests of the mathematics must notice each of the mistakes that public implementations have made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LOSSES, GUIDANCE, NOISE = "losses.py", "guidance.py", "noise.py"

MUTANTS = {
    "null and text swapped": (
        GUIDANCE,
        "[null + guidance * (text - null) for text, null in zip(texts, nulls, strict=True)]",
        "[null + guidance * (text - null) for null, text in zip(texts, nulls, strict=True)]",
    ),
    "source and target swapped": (
        LOSSES,
        "* (eps_target - _for_edits(eps_source, z_target))",
        "* (_for_edits(eps_source, z_target) - eps_target)",
    ),
    "text + s (text - null)": (GUIDANCE, "null + guidance * (text - null)", "text + guidance * (text - null)"),
    "different noise per branch": (
        LOSSES,
        "zs_t = teacher.schedule.add_noise(z_source, eps, t)",
        "zs_t = teacher.schedule.add_noise(z_source, torch.randn_like(eps), t)",
    ),
    "the mse trick": (
        LOSSES,
        "loss = (z * grad.detach()).sum(dim=(1, 2, 3)).mean()",
        "loss = 0.5 * ((z - (z - grad).detach()) ** 2).sum(dim=(1, 2, 3)).mean()",
    ),
    "mean instead of sum": (LOSSES, ".sum(dim=(1, 2, 3)).mean()", ".mean(dim=(1, 2, 3)).mean()"),
    "edits in the wrong order": (LOSSES, "x.repeat_interleave(edits, dim=0)", "torch.cat([x] * edits)"),
    "t of the wrong branch": (GUIDANCE, "[(b.z_t, b.t, b.condition.null) for", "[(b.z_t, b.t.flip(0), b.condition.null) for"),
    "v taken for eps": (NOISE, "return alpha * prediction + sigma * z_t", "return prediction"),
    "one branch's null for both": (
        GUIDANCE,
        "[(b.z_t, b.t, b.condition.null) for b in branches]",
        "[(branches[0].z_t, b.t, b.condition.null) for b in branches]",
    ),
    "no guidance in the source branch": (
        LOSSES,
        "_for_edits(eps_source, z_target))",
        "_for_edits(guided_eps(teacher, [Branch(zs_t, t, source)], 1)[0], z_target))",
    ),
}


def run_tests(package: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    tests = [str(ROOT / "tests" / name) for name in ("test_losses.py", "test_noise.py")]
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
