# `make ppo` and `make test` start from a bare clone; `make help` lists the rest.
# Once .venv and the model cache are filled, none of these needs a network.

PYTHON ?= python3
# Another TRL than the pinned one, in an environment of its own: make test TRL=1.13.0
TRL ?=
VENV ?= .venv$(if $(TRL),-trl-$(subst *,x,$(TRL)))
BIN := $(VENV)/bin
# More for the job: make ppo ARGS="--train.iterations=80", make test ARGS="-k gae".
ARGS ?=
# Test files that run at once; each is of one thread.
JOBS ?= 2

PIP := $(BIN)/python -m pip --disable-pip-version-check
# The build tool is installed beside the rest, so an editable install fetches nothing by itself.
INSTALL := $(PIP) install -q -c constraints.txt
JOB_EXTRAS := embedded,classifiers,sweeps
TEST_EXTRAS := embedded,classifiers,trackers,sweeps,math,docs,dev
# One plain process, said in full: `accelerate launch` lists every value that it had to guess.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 \
	--mixed_precision no --dynamo_backend no

.DEFAULT_GOAL := help
.PHONY: help ppo test docs browser fuzz chaos prove seeds bench env env-test models same-python \
	clean distclean

help:
	@echo 'make ppo        steer the embedded model with rewards        (ARGS="--train.iterations=80")'
	@echo 'make test       ruff, mypy and pytest                        (ARGS="-k gae" goes to pytest)'
	@echo '                PYTHON=python3.13 names an interpreter, TRL=1.13.0 another TRL'
	@echo 'make docs       the site: build/site/index.html, links checked (ARGS goes to mkdocs)'
	@echo 'make browser    report.html and the page of compare in a real browser (installs Chromium)'
	@echo 'make fuzz       hostile input: ten times as many cases as in the tests, new ones each time'
	@echo 'make chaos      a run under faults at random, ten minutes, then compared (ARGS="--seed 7")'
	@echo 'make prove      the slow proofs: the oracle over seeds'
	@echo 'make seeds      learning curves: the quickstart with three seeds, and its table of results'
	@echo 'make bench      time this project and TRL'"'"'s trainers         (ARGS="--only systems"; ARGS=--help)'
	@echo 'make env        only the environment of the job;  env-test: that of the tests'
	@echo 'make models     only fetch and convert the embedded models'
	@echo 'make clean      remove what builds and tools left;  distclean: .venv too'

ppo: models
	@$(LAUNCH) launch/ppo.py $(ARGS)

test: env-test
	@$(BIN)/python -m rewards.embedded > /dev/null
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# mkdocs is as old as its theme; the maintained successor of both, Zensical, reads the same file.
docs: env-test
	@$(BIN)/python docs/stage.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo 'built: build/site/index.html'

# Debian's package where there is no browser yet and we may install one.
browser: env-test
	@for name in chromium chromium-browser google-chrome chrome; do \
		command -v $$name > /dev/null && exit 0; done; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing chromium"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium; \
		else echo "no browser here: sudo apt-get install chromium, or put one into PATH"; exit 1; fi
	$(BIN)/python -m pytest tests/test_browser*.py $(ARGS)

# Random, not the tests' own cases: one that fails is printed, and belongs into the tests.
fuzz: env-test
	FUZZ_TIMES=10 $(BIN)/python -m pytest tests/test_fuzz_*.py $(ARGS)

chaos: env-test
	@$(BIN)/python -m rewards.embedded > /dev/null
	@$(BIN)/python tests/chaos.py $(ARGS)

prove: env-test
	@$(BIN)/python -m rewards.embedded > /dev/null
	$(BIN)/python -m pytest -m prove $(ARGS)

seeds: models
	@$(BIN)/python experiments/three_seeds.py $(ARGS)

bench: models benchmarks/.trl-1.12.0/.installed
	@$(BIN)/python -m benchmarks $(ARGS)

models: env
	@$(BIN)/python -m rewards.embedded > /dev/null

env: same-python $(VENV)/.installed-job
env-test: same-python $(VENV)/.installed-test

# An environment that is there keeps its interpreter: one that is named and differs is an error.
same-python:
ifneq ($(filter command environment,$(origin PYTHON)),)
	@[ ! -e $(VENV)/.created ] || [ "$$($(BIN)/python -V)" = "$$($(PYTHON) -V)" ] || { \
		echo "error: $(VENV) is of $$($(BIN)/python -V), and PYTHON=$(PYTHON) is $$($(PYTHON) -V):" \
		"name another folder, VENV=.venv-other, or make distclean first" >&2; exit 1; }
endif

# A stamp is the last thing that a recipe writes, so what failed is tried again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: $(PYTHON) is Python %d.%d; rlalign needs 3.11 or newer: make PYTHON=python3.11 ..." % v[:2])'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-job: $(VENV)/.created pyproject.toml setup.py constraints.txt
	@echo "installing into $(VENV) what constraints.txt pins (about 2 GB; minutes the first time)"
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation -e '.[$(JOB_EXTRAS)]'
	@$(if $(TRL),$(PIP) install -q --no-deps --upgrade 'trl==$(TRL)',:)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml setup.py constraints.txt
	@echo "installing into $(VENV) what constraints.txt pins, with the tools of the tests"
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation -e '.[$(TEST_EXTRAS)]'
	@$(if $(TRL),$(PIP) install -q --no-deps --upgrade 'trl==$(TRL)',:)
	@touch $(VENV)/.installed-job $@

# The last TRL with PPO, beside the one that is used: only benchmarks/trl_ppo.py sees it.
benchmarks/.trl-1.12.0/.installed: $(VENV)/.installed-job
	@echo "installing trl 1.12.0 into benchmarks/.trl-1.12.0"
	@$(PIP) install -q --no-deps --upgrade --target benchmarks/.trl-1.12.0 trl==1.12.0
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rlalign rewards tests launch experiments benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-trl-* benchmarks/.trl-*
