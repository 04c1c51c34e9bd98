# Everything a developer does. `make help` lists it; Python 3.11 or newer and make are all it needs.

# The interpreter that the environment is made with: the first of these that is new enough, or make PYTHON=...
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
VENV ?= .venv
BIN = $(VENV)/bin

DEMO_FLAGS ?= cat --sampling-precision auto
UI_FLAGS ?= runs
CONCEPT_FLAGS ?= cat
CLASSES_FLAGS ?= --images 10 --sampling-precision bf16 --probes completion --cache runs/bench/original
WORDS_FLAGS ?= --model tiny-sd --images 6 --sampling-precision bf16 --probes completion --cache runs/bench/original
BENCH_WORDS = bird airplane automobile deer ship truck horse cat "pixel art" night poster sketch
FIGURES_FLAGS ?= cat --images-per-class 40 --revival --sampling-precision auto
CONCEPT_FIGURES_FLAGS ?= cat --images-per-prompt 12 --revival
CHROMIUM ?= chromium

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-concept ui test lint format types bench figures commands stress clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-14s %s\n' "$$name" "$$text"; done

demo: $(VENV)/installed ## erase the class "cat" from the embedded model and show what became of it
	@$(BIN)/erase-class $(DEMO_FLAGS)

demo-concept: $(VENV)/installed ## erase the word "cat" from the embedded Stable Diffusion, as a LoRA
	@$(BIN)/erase-concept $(CONCEPT_FLAGS)

ui: $(VENV)/installed-ui ## a page in the browser, on the embedded models: draw before and after, erase, open reports
	@$(BIN)/semu ui $(UI_FLAGS)

test: $(VENV)/installed-dev ## run the tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/installed-dev ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --output-format concise . || { echo "make format mends these" >&2; exit 1; }

format: $(VENV)/installed-dev ## mend what a machine can mend of style and format
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

types: $(VENV)/installed-dev ## check the types
	@$(BIN)/python -m mypy -p semu_diffusion

bench: $(VENV)/installed-dev ## measure docs/benchmark/ anew: words and classes, ours on three seeds, peers tuned (a day of two cores)
	@$(BIN)/semu benchmark $(BENCH_WORDS) $(WORDS_FLAGS) --seeds 0,1,2 --methods default,closed-form,random --work runs/bench/words --output runs/bench/words.md
	@$(BIN)/semu benchmark horse truck $(WORDS_FLAGS) --methods docs/benchmark/random.json --work runs/bench/words --output runs/bench/words.md
	@$(BIN)/semu benchmark "pixel art" night poster sketch $(WORDS_FLAGS) --methods docs/benchmark/gentle.json --work runs/bench/words --output runs/bench/words.md
	@$(BIN)/semu benchmark horse sketch $(WORDS_FLAGS) --methods uce,rece,speed,remap --work runs/bench/words --output runs/bench/words.md
	@$(BIN)/semu benchmark horse sketch $(WORDS_FLAGS) --tune --tune-on dog --methods esd-x,concept-ablation,salun,leco,spm --work runs/bench/words-tuned --output runs/bench/words-tuned.md
	@$(BIN)/semu benchmark --merge runs/bench/words,runs/bench/words-tuned --output docs/benchmark/words.md
	@$(BIN)/semu benchmark $(CLASSES_FLAGS) --seeds 0,1,2 --methods default,closed-form,random --work runs/bench/classes --output runs/bench/classes.md
	@$(BIN)/semu benchmark $(CLASSES_FLAGS) --methods docs/benchmark/deep.json --work runs/bench/classes --output runs/bench/classes.md
	@$(BIN)/semu benchmark horse $(CLASSES_FLAGS) --methods copy,uce --work runs/bench/classes --output runs/bench/classes.md
	@$(BIN)/semu benchmark $(CLASSES_FLAGS) --methods docs/benchmark/fine-tune.json --work runs/bench/classes --output runs/bench/classes.md
	@$(BIN)/semu benchmark horse $(CLASSES_FLAGS) --seeds 1,2 --methods docs/benchmark/fine-tune.json --work runs/bench/classes --output runs/bench/classes.md
	@$(BIN)/semu benchmark horse $(CLASSES_FLAGS) --tune --tune-on dog --methods salun,sfr-on,erasediff,esd-u,fine-tune-retain --work runs/bench/classes-tuned --output runs/bench/classes-tuned.md
	@$(BIN)/semu benchmark --merge runs/bench/classes,runs/bench/classes-tuned --output docs/benchmark/classes.md
	@$(BIN)/semu benchmark horse $(WORDS_FLAGS) --methods default,docs/benchmark/without.json --work runs/bench/without --output runs/bench/without.md
	@$(BIN)/semu benchmark horse $(CLASSES_FLAGS) --methods default,docs/benchmark/without.json --work runs/bench/without --output runs/bench/without.md
	@$(BIN)/semu benchmark --merge runs/bench/without --output docs/benchmark/ablation.md

figures: $(VENV)/installed-dev ## make the pictures of the README and the example reports again
	@rm -rf runs/figures runs/figures-concept
	@$(BIN)/erase-class $(FIGURES_FLAGS) --output runs/figures
	@$(BIN)/erase-concept $(CONCEPT_FIGURES_FLAGS) --output runs/figures-concept
	@cp runs/figures/before_after.png assets/before_after.png
	@$(BIN)/semu report runs/figures --output docs/report-class.html
	@cp runs/figures-concept/before_after.png assets/before_after_concept.png
	@$(BIN)/semu report runs/figures-concept --output docs/report-concept.html
	@$(CHROMIUM) --headless --hide-scrollbars --window-size=1100,1720 --screenshot=assets/report.png docs/report-concept.html

stress: $(VENV)/installed-dev ## thousands of damaged files, a hundred runs ended in the middle (the tests take some)
	@SEMU_MUTANTS=2000 SEMU_KILLS=120 $(BIN)/python -m pytest -q tests/test_patch_fuzz.py tests/test_file_fuzz.py tests/test_kills.py

commands: $(VENV)/installed ## write docs/commands.md and docs/families.md
	@$(BIN)/python -m semu_diffusion.pipelines.cli.reference > docs/commands.md
	@HF_HUB_OFFLINE=1 $(BIN)/python tests/family_table.py > docs/families.md

clean: ## remove the environment and everything that was built; run folders stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find pipelines eval assets semu_diffusion tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Three stamps, so that the demos wait neither for the tools of development nor for the page's; all fall behind when pyproject.toml changes.
$(VENV)/installed: pyproject.toml $(BIN)/python
	@echo "installing into $(VENV) (the first time a few minutes and several GB, nearly all of it PyTorch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lora]'
	@touch $@ && echo "installed."

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing the tools of development ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ && echo "installed."

$(VENV)/installed-ui: $(VENV)/installed
	@echo "installing what the page needs ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ui]'
	@touch $@ && echo "installed."

$(BIN)/python:
	@for python in $(PYTHON); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; done; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer is needed, and none of these is one: $(PYTHON). Install it, or say where it is:" \
			"make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; fi; \
	echo "making the environment $(VENV) with $$python ..." && \
	"$$python" -m venv --clear $(VENV)
