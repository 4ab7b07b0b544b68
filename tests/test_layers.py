"""Imports point one way: commands -> training -> evaluation -> methods, data -> translator -> diffusion -> distillation."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dds_train"
# What each room may import, itself aside. The critters world stands alone.
ALLOWED: dict[str, set[str]] = {
    "distillation": set(),
    "runs": set(),
    "critters": set(),
    "images": {"runs"},
    "diffusion": {"distillation", "runs"},
    "translator": {"distillation", "diffusion", "images", "runs"},
    "data": {"distillation", "diffusion", "translator", "images", "runs"},
    "methods": {"distillation", "diffusion", "translator", "data", "images", "runs"},
    "evaluation": {"critters", "methods", "diffusion", "distillation", "translator", "images", "runs"},
    "training": {"distillation", "diffusion", "translator", "data", "images", "critters", "evaluation", "runs"},
    "export": {"runs", "diffusion", "translator", "evaluation", "images"},
    "cli": {"images", "data", "critters", "runs"},
}
ALLOWED["commands"] = {*ALLOWED, "demo"}


def imported_rooms(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("dds_train.")]
    return {part[1] for part in parts} - {"errors", "hub", "__version__"}


def test_rooms_import_in_one_direction() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert rooms == set(ALLOWED)
    for room, allowed in ALLOWED.items():
        for file in (PACKAGE / room).rglob("*.py"):
            assert imported_rooms(file) <= allowed | {room}, file


def test_mathematics_imports_torch_and_nothing_else() -> None:
    known = set(sys.stdlib_module_names) | {"torch", "dds_train"}
    for file in (PACKAGE / "distillation").glob("*.py"):
        tree = ast.parse(file.read_text())
        roots = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        roots |= {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert roots <= known, file


def test_only_the_training_room_and_the_door_know_lightning() -> None:
    for file in PACKAGE.rglob("*.py"):
        knows = "pytorch_lightning" in file.read_text()
        at_home = file.parent.name == "training" or file.name == "fit.py"
        assert at_home or not knows, file


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, dds_train.cli.main; print(sorted({'torch', 'diffusers', 'hydra', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
