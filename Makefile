# Two commands do all the set-up: make cat2lion, make test. Needs Python 3.10 to 3.13 (PYTHON=python3.12 picks one) and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
OUT := outputs/cat2lion

.PHONY: cat2lion test test-slow test-lowest table clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --editable . --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/bin/pip install --editable '.[dev]' --constraint constraints.txt
	touch $@

cat2lion: $(VENV)/.installed
	$(RUN) dds_train fit +experiment=cat2lion output_dir=$(OUT)
	$(RUN) dds_train predict ckpt=$(OUT)/translator image=data/examples output_dir=$(OUT)/examples
	@echo "Cats above, lions below: $(OUT)/examples/before_after.png (during training: $(OUT)/previews)"

test: $(VENV)/.installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pytest -n 2

test-slow: $(VENV)/.installed-dev
	$(RUN) pytest -m slow -n 2

# The lowest versions that pyproject.toml allows, in an environment of its own (Python 3.10).
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install uv
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest

# The README's table of methods; needs the translator of cat2lion.
table: $(VENV)/.installed
	$(RUN) dds_train evaluate ckpt=$(OUT)/translator methods=null output_dir=outputs/evaluate

clean:
	rm -rf $(VENV) .venv-lowest build dist  # never outputs: they are the user's
