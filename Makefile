# `make` alone lists what there is. Every target sets up .venv by itself; PYTHON chooses the interpreter it is made with.
# TORCH_INDEX, if given, is where torch and torchvision come from in place of PyPI: there are small wheels for CPUs alone.
PYTHON ?= python3
TORCH_INDEX ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OLDEST := .venv-oldest
PIP    := -m pip install --quiet --disable-pip-version-check --progress-bar off
EXTRAS := -e '.[parquet,plot,report,audio,joblib,export,timm,play,dev]'
PAIR    = $(shell sed -nE 's/^ *"(torch|torchvision)>=([0-9.]+)".*/\1==\2.*/p' pyproject.toml)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sort | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python $(PIP) --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/python $(PIP) $(EXTRAS)
	@touch $@

setup: $(STAMP) ## make .venv and install everything into it

demo: $(STAMP) ## train SimCLR on built-in images and probe it: 4 minutes on 2 cores, 2 with bfloat16; no download
	$(BIN)/python train.py experiment=demo hydra.run.dir=runs/demo/latest
	$(BIN)/python scripts/linear_probe.py ckpt=runs/demo/latest/last.ckpt baseline=true
	$(BIN)/python scripts/plot_run.py run=runs/demo/latest
	@echo 'pictures: runs/demo/latest/views.png (what the model sees), runs/demo/latest/curves.png (how it learned)'

demo-audio: $(STAMP) ## train on spoken digits (TWOVIEW_DATA or data/ has them) without two of the voices, and probe on these
	$(BIN)/python benchmarks/speakers.py experiment=fsdd root=$${TWOVIEW_DATA:-data}/fsdd folds=0 out=runs/speakers/fsdd/voices.json

demo-table: $(STAMP) ## train on Letter (TWOVIEW_DATA or data/ has it) and compare with what reads the raw columns; its time is not measured yet
	$(BIN)/python train.py experiment=letter hydra.run.dir=runs/demo/table
	$(BIN)/python benchmarks/tables.py ckpt=runs/demo/table all=true out=runs/demo/table/tables.json

demo-text: $(STAMP) ## train on BANKING77 (TWOVIEW_DATA or data/ has it) and compare with TF-IDF
	$(BIN)/python train.py experiment=banking77 hydra.run.dir=runs/demo/text
	$(BIN)/python benchmarks/texts.py ckpt=runs/demo/text out=runs/demo/text/texts.json

ablation: $(STAMP) ## what colour distortion does, by 9 runs on built-in images, no download; its time on the present demo is not measured
	$(BIN)/python scripts/ablate_augment.py study=strength 'study.axes={augment.strength:[0,0.5,1.0]}' experiment=demo epochs=3 folder=runs/ablate/demo
	@echo 'the report: runs/ablate/demo/report.html'

test: $(STAMP) ## run the tests, on all cores
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist worksteal

test-all: $(STAMP) ## run the tests, the slow ones too
	$(BIN)/python -m pytest -n auto --dist worksteal

test-oldest: ## run the tests on the oldest torch and torchvision that are supported, in an environment of their own
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(foreach one,$(PAIR),'$(one)') $(EXTRAS)
	$(OLDEST)/bin/python -m pytest -m 'not slow' -n auto --dist worksteal

test-cluster: $(STAMP) ## run jobs on a SLURM that is brought up here: needs slurmctld, slurmd, slurm-client and munge
	$(BIN)/python -m pytest tests/cluster -m slurm

bench: $(STAMP) ## speed and memory beside the peers: 35 minutes on 2 cores
	$(BIN)/python $(PIP) -e '.[bench]'
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/scaling.py

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the source in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## the documentation site, into site/
	$(BIN)/python $(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: $(STAMP) ## build source and wheel into dist/, check their descriptions, try the wheel in an empty folder; uploads nothing
	$(BIN)/python $(PIP) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_wheel.py tests/test_project.py

clean: ## remove .venv and caches; runs and data stay
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo demo-audio demo-table demo-text ablation test test-all test-oldest test-cluster bench check format docs release clean
.DEFAULT_GOAL := help
