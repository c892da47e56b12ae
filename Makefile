# make quickstart   train, translate, score and draw, from nothing
# make test         the whole test suite in TEST_PROCESSES processes, with the kernels as they are in the tree;
#                   PYTEST_OPTIONS="-k layer" chooses
# make lint         ruff and mypy
# make bench        speed and memory beside the peers'; DATA=DATA_BIN and TEXT=DATA_BIN, of translation and of a language
#                   model, and CHECKPOINT=STOCK.pt, to translate with, stand in for generated text and a model trained for it
#
# make kernels      the compiled kernels, or what has changed of them
# make cuda-check   the CUDA kernels through nvcc, without a GPU: warnings, registers, spills;
#                   CUDA_CHECK_OPTIONS=--host leaves nvcc out
#
# Everything is installed into $(VENV) first. PYTHON names the interpreter, else it
# is that of $(VENV), or the newest at hand; TORCH is what pip installs as torch.

VENV ?= .venv
TEST_PROCESSES ?= 2
TORCH ?= torch==2.13.0
PYTHON ?= $(shell for p in $(VENV)/bin/python python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)

# what is installed: by the interpreter's version and what pip is given as torch
minor := 'import sys; print(*sys.version_info[:2], sep=".")'
given := $(shell $(PYTHON) -c $(minor) 2>/dev/null)-$(TORCH)
installed := $(VENV)/.installed-$(shell echo '$(given)' | tr -c -d '[:alnum:].-')
python := $(VENV)/bin/python

.PHONY: quickstart quickstart-smoke test lint bench kernels cuda-check environment clean

quickstart: kernels
	$(python) -m examples.quickstart.run

quickstart-smoke: kernels
	$(python) -m examples.quickstart.run --smoke

# A suite or a measurement without the kernels would say little.
test bench: export FAIRSEQ_G2LSTM_REQUIRE_KERNELS ?= 1
test: kernels
	@$(python) -c "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
	$(python) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_OPTIONS)

lint: $(installed)
	$(python) -m ruff check .
	$(python) -m mypy

bench: kernels
	$(python) -m benchmarks.run layer
	$(python) -m benchmarks.run end-to-end $(if $(DATA),--data "$(DATA)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")
	$(python) -m benchmarks.run language-model $(if $(TEXT),--data "$(TEXT)")

kernels: $(installed)
	$(python) setup.py --quiet build_ext --inplace

cuda-check: $(installed)
	$(python) kernels/cuda_check.py $(CUDA_CHECK_OPTIONS)

environment: $(installed)

$(installed): setup.py pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test ! -e $(python) || test "$$($(python) -c $(minor))" = "$$($(PYTHON) -c $(minor))" || { echo "error: $(VENV) has another Python than $(PYTHON): make clean first, or give another folder by VENV=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet "setuptools>=77" wheel ninja
	$(python) -m pip install --quiet "$(TORCH)"
	$(python) -m pip install --quiet --no-build-isolation "$(TORCH)" --editable ".[tensorboard,plot,safetensors,examples,dev]"
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info fairseq_g2lstm/*.so
