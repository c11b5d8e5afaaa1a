# make reproduce   the whole main job into out/ (bandits first, then the language model); run it again to continue
# make test        lint, types, tests: no GPU, no hub
# make figures     redraw the figures from the records in out/
# make zero        install DeepSpeed (an extra; wants a C++ compiler) and test training with ZeRO-2 and -3 on two CPU processes
# make audit       known vulnerabilities of the pinned versions (needs the package index)
# make notebooks   run the notebooks again, in place, on the records shipped here
# make benchmarks  speed and memory of training against trl, each ratio beside its target (CPU)

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin

# Each step reads what the one before wrote.
.NOTPARALLEL:

.PHONY: help reproduce bandits language-model figures claims notebooks benchmarks zero test lint types pytest audit clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

# One environment with exact versions; the stamps make a second call start at once.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== creating the virtual environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.created pyproject.toml constraints.txt
	@echo "== installing (torch is the large one)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# Liger-Kernel is a peer for parity tests: its losses are plain torch, so it comes without what its GPU kernels need.
$(VENV)/.test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "== installing, with what the tests need"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,peer,notebooks]'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps liger-kernel
	@touch $@ $(VENV)/.run

reproduce: bandits language-model figures claims

bandits: $(VENV)/.run
	@echo "== 1/4 exact bandits, with their figures"
	$(BIN)/python -m toy_bandits run --out $(OUT)/bandits
	$(BIN)/python -m paper_figures bandits --records $(OUT) --out $(OUT)/figures

language-model: $(VENV)/.run
	@echo "== 2/4 the language model"
	$(BIN)/python -m llm_runs run quick --out $(OUT)/language_model

figures: $(VENV)/.run
	@echo "== 3/4 all figures"
	$(BIN)/python -m paper_figures all --records $(OUT) --out $(OUT)/figures

claims: $(VENV)/.run
	@echo "== 4/4 verdicts"
	$(BIN)/python -m analysis claims $(OUT)
	@echo "Figures: $(OUT)/figures (PDF, PNG, and the records behind each); records: $(OUT)/bandits, $(OUT)/language_model"

notebooks: $(VENV)/.test
	$(BIN)/jupyter execute --inplace analysis/notebooks/*.ipynb

# Passive waiting: threads that spin would count as work.
benchmarks: $(VENV)/.test
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks training --out $(OUT)/benchmarks/training

# None of DeepSpeed's kernels are needed; what its processes talk through on a CPU is compiled once, here: several processes that compile
# it at the same time wait for each other, and for ever if one was killed meanwhile.
$(VENV)/.zero: export PATH := $(abspath $(BIN)):$(PATH)
$(VENV)/.zero zero: export TORCH_EXTENSIONS_DIR := $(abspath $(VENV))/torch_extensions
$(VENV)/.zero: $(VENV)/.test
	@echo "== installing DeepSpeed, and compiling what its processes talk through (minutes)"
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,zero]'
	rm -rf "$(TORCH_EXTENSIONS_DIR)"
	$(BIN)/python -c 'from deepspeed.comm.torch import build_shm_op; assert build_shm_op() is not None'
	@touch $@

zero: $(VENV)/.zero
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/llm_runs/test_zero.py

test: lint types pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

pytest: $(VENV)/.test
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

# In an environment of its own: what it needs is none of the project's business.
audit: $(VENV)/.created
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.7'
	$(VENV)/audit/bin/pip-audit --strict -r constraints.txt --no-deps --disable-pip

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
