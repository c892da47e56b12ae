# make quickstart   train, translate, score and draw, from nothing
# make test         the whole test suite
# make lint         ruff and mypy
#
# Everything is installed into $(VENV) first. PYTHON names the interpreter, TORCH what pip installs as torch.

VENV ?= .venv
TORCH ?= torch==2.13.0
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)

installed := $(VENV)/.installed-$(subst =,,$(TORCH))
python := $(VENV)/bin/python

.PHONY: quickstart quickstart-smoke test lint environment clean

quickstart: $(installed)
	$(python) -m examples.quickstart.run

quickstart-smoke: $(installed)
	$(python) -m examples.quickstart.run --smoke

test: $(installed)
	@$(python) -c "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
	$(python) -m pytest

lint: $(installed)
	$(python) -m ruff check .
	$(python) -m mypy

environment: $(installed)

$(installed): setup.py pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet "setuptools>=77" wheel
	$(python) -m pip install --quiet "$(TORCH)"
	$(python) -m pip install --quiet --no-build-isolation "$(TORCH)" --editable ".[tensorboard,plot,examples,dev]"
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
