# One place for what a fresh machine needs. Python >= 3.11 and make are enough; README has the same without make.
#   make reproduce    set up, execute the quick collection, write figures, records and the scoreboard
#   make test         set up, run the whole gate: unit tests, notebook guards, nbval
#   make lab          set up, open JupyterLab
#   make site         build the HTML book that needs no network; make site-check looks at it in a browser
# Another interpreter: make PYTHON=python3.12 test.  PyTorch's CPU build, which is far smaller than the one with CUDA:
#   make PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu" reproduce

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_OPTIONS ?=
JOBS ?= 2
# One intra-op thread a process: two were measured nine times slower on shared cores.
export OMP_NUM_THREADS = 1
# Files are read and written as UTF-8 whatever the locale says.
export PYTHONUTF8 = 1
# The C library keeps freed memory for the next step, as in the kernels of `sharpnb run`.
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 67108864

# Installs PACKAGES into the environment of the target: by uv, which takes a third of pip's time; by pip where uv cannot, and
# where pip was given an index of one's own, which uv would not ask.
define install
@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
@pip="$(@D)/bin/python -m pip"; install="$$pip install --quiet --disable-pip-version-check"; \
  { ! $$pip config list | grep -q '\.index-url=' && $$install -c constraints.txt --only-binary uv uv \
    && $(@D)/bin/python -m uv pip install --quiet --compile-bytecode --index-strategy unsafe-best-match \
      --python $(@D)/bin/python $(PIP_OPTIONS) $(PACKAGES); } \
  || $$install $(PIP_OPTIONS) $(PACKAGES)
endef

.PHONY: help reproduce test test-oldest test-recipes coverage lab site site-check lint format bench drills lock clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -7

# The stamps are written last, so that an interrupted installation is repeated and not taken for a finished one. The package
# is compiled, as a wheel's would be: where Python may write no bytecode, every process would compile it.
.venv/ready: PACKAGES = -c constraints.txt -e ".[notebooks,scale,safetensors,dev]"
.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found. Install one, or: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module (on Debian: apt install python3-venv). README, 'Without make', shows pip and conda."; exit 1; }
	@echo "Setting up .venv: a minute or more the first time, most of it PyTorch."
	$(install)
	@.venv/bin/python -m compileall -q sharpnb notebooks/studies recipes
	@touch .venv/ready

reproduce: .venv/ready
	@.venv/bin/python -m sharpnb.cli run --profile quick
	@.venv/bin/python -m sharpnb.cli report

# Two processes of one thread each; the gate keeps the cells of a notebook together. JOBS=0 is one after the other.
test: .venv/ready
	.venv/bin/python -m pytest -n $(JOBS) tests notebooks

# Which lines the tests and the kernels of the notebooks run; kernels report nothing under xdist, so one after the other.
coverage: .venv/ready
	.venv/bin/python -m pytest --cov=sharpnb --cov=studies --cov-report=term:skip-covered tests notebooks

# The whole checkout is served, for the notebooks show pictures of figures/ beside them; root has to say that it may.
LAB_OPTIONS = --ServerApp.root_dir="$(CURDIR)" $(if $(filter 0,$(shell id -u)),--allow-root)
lab: .venv/ready
	.venv/bin/python -m jupyterlab $(LAB_OPTIONS) notebooks/00_index.ipynb

# The notebooks as an HTML book that needs no network, in site/_build/html; its packages come on demand.
.venv/site: PACKAGES = -c constraints.txt -e ".[site]"
.venv/site: .venv/ready
	$(install)
	@touch .venv/site

site: .venv/site
	@.venv/bin/python -m sharpnb.cli report
	@.venv/bin/python site/build.py && echo "Open site/_build/html/index.html"

# Looks at the real pages in a headless Chromium; without one it says what to install, and stops.
site-check: site
	@.venv/bin/python site/check.py

# The oldest supported PyTorch, in an environment of its own; the other pins stay.
.venv-oldest/ready: PACKAGES = -c .venv-oldest/constraints.txt torch==2.11.0 torchvision==0.26.0 -e ".[notebooks,scale,safetensors,dev]"
.venv-oldest/ready: pyproject.toml constraints.txt
	@mkdir -p .venv-oldest && grep -v '^torch' constraints.txt > .venv-oldest/constraints.txt
	$(install)
	@touch .venv-oldest/ready

test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest -o addopts="" tests/unit

# The recipes for other people's training loops, with what they need in an environment of its own: without the gate's nbval.
.venv-recipes/ready: PACKAGES = -c constraints.txt -e ".[recipes,dev]"
.venv-recipes/ready: pyproject.toml constraints.txt
	$(install)
	@touch .venv-recipes/ready

test-recipes: .venv-recipes/ready
	.venv-recipes/bin/python -m pytest -o addopts="" --confcutdir=tests/recipes tests/recipes

lint: .venv/ready
	.venv/bin/python -m ruff check .
	.venv/bin/python -m pyright

format: .venv/ready
	.venv/bin/python -m ruff check --fix .

# The benchmarks beside their peers, which have an environment of their own; the pages, and the overview of them.
.venv-bench/ready: PACKAGES = -c constraints.txt -e ".[notebooks,bench]"
.venv-bench/ready: pyproject.toml constraints.txt
	$(install)
	@touch .venv-bench/ready

BENCH_STORE = data/runs/benchmarks
bench: .venv-bench/ready
	@mkdir -p $(BENCH_STORE)
	.venv-bench/bin/python benchmarks/optimizers.py --store $(BENCH_STORE)/optimizers.json
	.venv-bench/bin/python benchmarks/optimizers.py --store $(BENCH_STORE)/optimizers.json --page
	.venv-bench/bin/python benchmarks/curvature.py --store $(BENCH_STORE)/curvature.json
	.venv-bench/bin/python benchmarks/curvature.py --store $(BENCH_STORE)/curvature.json --page
	.venv-bench/bin/python benchmarks/landscape.py --write
	.venv-bench/bin/python benchmarks/sweeps.py --write
	.venv-bench/bin/python benchmarks/overview.py

# The drills of tests/drills, so many times as often as the gate has them.
DRILL_TIMES ?= 3
drills: .venv/ready
	SHARPNB_DRILL_TIMES=$(DRILL_TIMES) .venv/bin/python -m pytest tests/drills

lock: .venv/site
	@{ sed -n '/^#/p' constraints.txt; .venv/bin/python -m pip freeze --exclude-editable \
	  | grep -viE '^(nvidia|cuda|triton)' | sed 's/+.*//' | sort -f; } > .venv/constraints.new
	@mv .venv/constraints.new constraints.txt

clean:
	rm -rf .venv .venv-oldest .venv-recipes .venv-bench data/runs
