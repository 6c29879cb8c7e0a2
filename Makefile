# Every target sets up .venv by itself; `make help` lists them. All real work is done by the console script `anomaly-vlm`.
VENV ?= .venv
EXTRAS ?=
BIN := $(VENV)/bin
CLI := $(BIN)/anomaly-vlm
INSTALL := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check -q)

# METHOD=adaclip DATASET=visa_to_mvtec ... become overrides of the configuration.
OVERRIDES := $(if $(METHOD),method=$(METHOD)) $(if $(EXPERIMENT),experiment=$(EXPERIMENT)) $(if $(DATASET),dataset=$(DATASET)) \
  $(if $(BACKBONE),backbone=$(BACKBONE)) $(if $(TRAIN),source@dataset.train=$(TRAIN)) $(if $(TEST),source@dataset.test=$(TEST)) \
  $(if $(TRAIN_DATA),"dataset.train.root=$$TRAIN_DATA") $(if $(DATA),"dataset.test.root=$$DATA") $(if $(TRAINER),trainer=$(TRAINER)) \
  $(if $(LOGGER),logger=$(LOGGER)) $(if $(SEED),seed=$(SEED)) \
  $(if $(SHOTS),shots=$(SHOTS)) $(if $(SEEDS),'seeds=[$(SEEDS)]') $(ARGS)

# Paths and words reach the shell through the environment, so that any character of a name stays as it is: what make would
# expand in them is kept by `value`.
NAMES := TRAIN_DATA DATA RESUME CKPT IMAGES ANSWERS GOOD BAD RUN STUDY CATEGORIES
$(foreach name,$(NAMES),$(if $(value $(name)),$(eval override $(name) := $$(value $(name)))))
export $(NAMES)

.DEFAULT_GOAL := help
.PHONY: help setup train evaluate fit inspect predict watch serve export sweep benchmark report compare dashboard data descriptions nano nano-report cache test test-all test-faults test-gpu lint format bench docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 ## /p' Makefile | awk -F ' ## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  variables: METHOD DATASET BACKBONE TRAIN TEST TRAIN_DATA DATA TRAINER LOGGER SEED SHOTS SEEDS EXPERIMENT RESUME CKPT IMAGES GOOD BAD RUN STUDY CATEGORIES BENCH LIMIT"
	@echo "  ARGS=\"any.hydra=override other=value\" is passed on as it is; EXTRAS=wandb,sweep installs extras; UV=1 installs with uv"

$(VENV)/.run: pyproject.toml
	@$(if $(UV),test -d $(VENV) || uv venv -q $(VENV),for python in python3 python3.13 python3.12 python3.11; do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; done; \
	  test -n "$$python" || { echo "make: Python 3.11 or newer is needed and was not found" >&2; exit 2; }; \
	  test -x $(BIN)/python || $$python -m venv $(VENV))
	@echo "installing anomaly_vlm into $(VENV) (once; a few minutes)"
	@$(INSTALL) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing the development tools into $(VENV) (once)"
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	@echo "installing what the benchmarks compare with into $(VENV) (once)"
	@$(INSTALL) -e '.[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	@echo "installing what makes the pages into $(VENV) (once)"
	@$(INSTALL) -e '.[docs]'
	@touch $@

setup: $(VENV)/.run ## set up .venv; EXTRAS=wandb,sweep adds extras
	@$(if $(EXTRAS),$(INSTALL) -e '.[$(EXTRAS)]',true)

train: $(VENV)/.run ## train and evaluate: METHOD=adaclip [DATASET= BACKBONE= ...], or RESUME=outputs/... to resume
	@$(CLI) train $(if $(RESUME),"resume=$$RESUME" $(ARGS),$(OVERRIDES))

evaluate: $(VENV)/.run ## evaluate a checkpoint: CKPT=outputs/.../last.ckpt [DATASET= DATA= ...]
	@$(CLI) evaluate $(if $(CKPT),"ckpt=$$CKPT") $(OVERRIDES)

PARTS = $(if $(GOOD),"good=$$GOOD") $(if $(BAD),"bad=$$BAD") $(if $(CKPT),"ckpt=$$CKPT") $(if $(IMAGES),"images=$$IMAGES") $(OVERRIDES)

fit: $(VENV)/.run ## learn from good parts, choose the threshold: METHOD=winclip GOOD=FOLDER [SHOTS= BAD=FOLDER]
	@$(CLI) fit $(PARTS)

inspect: $(VENV)/.run ## fit, then predict: METHOD=winclip GOOD=FOLDER IMAGES=FOLDER
	@$(CLI) inspect $(PARTS)

predict: $(VENV)/.run ## scores, decisions, heat maps: IMAGES=FOLDER [CKPT=FILE]; without CKPT what the suite ships
	@$(CLI) predict $(if $(CKPT),"ckpt=$$CKPT") $(if $(IMAGES),"images=$$IMAGES") $(OVERRIDES)

watch: $(VENV)/.run ## score images as they arrive: CKPT=FILE IMAGES=FOLDER
	@$(CLI) watch $(if $(CKPT),"ckpt=$$CKPT") $(if $(IMAGES),"images=$$IMAGES") $(ARGS)

serve: $(VENV)/.run ## judge images over HTTP on this machine: CKPT=FILE (needs EXTRAS=serve once) [ARGS="port=8000"]
	@$(CLI) serve $(if $(CKPT),"ckpt=$$CKPT") $(ARGS)

export: $(VENV)/.run ## a checkpoint as an ONNX file: CKPT=FILE (needs EXTRAS=export once) [FORMAT=openvino ARGS="category=WORD output=FILE.onnx"]
	@$(CLI) export $(if $(CKPT),"ckpt=$$CKPT") $(if $(FORMAT),format=$(FORMAT)) $(ARGS)

sweep: $(VENV)/.run ## many runs, one table: EXPERIMENT=adaclip/prompts, or ARGS="seed=0,1,2", or RESUME=outputs/sweeps/... to resume
	@$(CLI) sweep $(if $(RESUME),"resume=$$RESUME" $(ARGS),$(OVERRIDES))

benchmark: $(VENV)/.run ## every method in one protocol, and whether its texts matter: [LIMIT=N SEEDS=0,1,2]; call again to resume
	@$(CLI) benchmark $(if $(LIMIT),limit=$(LIMIT)) $(OVERRIDES)

report: $(VENV)/.run ## an HTML page about an evaluation or a prediction: RUN=FOLDER; without RUN one table of all runs below outputs/
	@$(CLI) report $(if $(RUN),"run=$$RUN") $(ARGS)

dashboard: $(VENV)/.run ## a wandb workspace and report on a study: STUDY=outputs/sweeps/... or adaclip/prompts (needs EXTRAS=wandb once)
	@$(CLI) dashboard $(if $(STUDY),"study=$$STUDY") $(ARGS)

compare: $(VENV)/.run ## published numbers beside measured ones: STUDY=adaclip [RUN=FOLDER]
	@$(CLI) compare $(if $(STUDY),"study=$$STUDY") $(if $(RUN),"run=$$RUN") $(ARGS)

data: $(VENV)/.run ## check a data set and draw a contact sheet: DATASET=procedural [DATA=FOLDER]
	@$(CLI) data $(OVERRIDES) sheet=outputs/$(if $(DATASET),$(DATASET),procedural).png

descriptions: $(VENV)/.run ## texts of new categories by a language model: METHOD=filo CATEGORIES=gear,button [ANSWERS=FILE]
	@$(CLI) descriptions $(if $(METHOD),method=$(METHOD)) $(if $(CATEGORIES),"categories=[$$CATEGORIES]") $(if $(ANSWERS),"answers=$$ANSWERS") $(ARGS)

nano: $(VENV)/.run ## train the embedded nano CLIP (needs EXTRAS=nano; call again to resume); MODEL=convnext the one for roads
	@$(CLI) nano $(if $(MODEL),model=$(MODEL)) $(if $(SEED),seed=$(SEED)) $(ARGS)

nano-report: $(VENV)/.run ## what the nano CLIP is worth: ARGS="magnetic_tile=FOLDER brain_mri=FOLDER"
	@$(CLI) nano-report $(ARGS)

cache: $(VENV)/.run ## list the token caches on disk; ARGS=clear=all removes them
	@$(CLI) cache $(ARGS)

PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

test: $(VENV)/.dev ## the tests, on all cores (10 to 16 minutes on 2); ARGS="-n 0 tests/data" runs a part of them in one process
	@$(PYTEST) -m "not slow and not gpu and not faults" $(ARGS)

test-all: $(VENV)/.dev ## the slow tests too
	@$(PYTEST) -m "not gpu and not faults" $(ARGS)

test-faults: $(VENV)/.dev ## runs broken on purpose, up to 40 minutes on 2 cores; writes docs/reliability.md
	@OMP_NUM_THREADS=1 ANOMALY_VLM_RELIABILITY=docs/reliability.md $(BIN)/python -m pytest -n 2 --dist worksteal -m faults tests/faults $(ARGS)

test-gpu: $(VENV)/.dev ## every method in every precision on a GPU; writes outputs/gpu_report.md, to send
	@ANOMALY_VLM_GPU_REPORT=outputs/gpu_report.md $(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev ## ruff's formatter and safe fixes
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/.bench ## measure: BENCH=adaclip, filo, winclip, training, metrics, trivial ...
	@$(CLI) bench $(BENCH) $(ARGS)

docs: $(VENV)/.docs ## API pages from the docstrings, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "written: site/index.html"

clean: ## remove caches and builds (not outputs/, not .venv)
	@rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
