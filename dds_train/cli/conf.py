"""Where the YAML files are."""

from pathlib import Path

# Beside the package in a checkout, inside it in a wheel.
CONF = next(p for p in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if p.is_dir())
