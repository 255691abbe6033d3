# Two commands for a fresh clone: `make demo` and `make test`. Needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= run/demo
# Tests and `up` start many processes: what is compiled once is kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-again test-slow lint types contracts check bench mutants docs tutorial sign-limits lock clean

# One marker says that the environment matches the lock file.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iongantry needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.ready
	rm -rf $(RUN)
	$(BIN)/iongantry treat examples/carbon_sphere.dcm --facility asan --room G1 --output $(RUN)

# Every behaviour once, in five to six minutes on two cores (the aim is below five). What repeats it at length: test-slow (CONTRIBUTING.md).
#
# The tests are compiled once by two processes, as each of the four would else do it for itself.
#
# Tests on real wires claim what is true of a computer that keeps time, and four processes on two cores do not leave it alone: up to ten of them
# that failed beside the others are run once more by themselves, in sight. What fails there, and any other test, has failed (docs/decisions/0018).
BESIDE := .pytest_cache/failed-beside-others

test: $(VENV)/.ready
	$(BIN)/python -m compileall -q controller drivers interlocks simulators
	@ls -d tests/*/ tests/test_*.py | xargs -P 2 -n 7 $(BIN)/python -m pytest --collect-only -qq >/dev/null || true
	$(BIN)/python -m pytest -n 4 --dist loadgroup -m "not slow" --failed-to=$(BESIDE) || $(MAKE) --no-print-directory test-again

test-again: $(VENV)/.ready
	@test -s $(BESIDE) || { echo "Not the clock's fault: nothing is run again."; exit 1; }
	@echo "Failed beside the others, once more by themselves:" && cat $(BESIDE)
	$(BIN)/python -m pytest @$(BESIDE)

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

contracts: $(VENV)/.ready
	$(BIN)/lint-imports

check: lint types contracts test

bench: $(VENV)/.ready
	$(BIN)/python -m bench

# Plants faults in the interlock system; every one must be noticed by a test. About two minutes on two cores.
mutants: $(VENV)/.ready
	$(BIN)/python tests/interlocks/mutants.py

docs: $(VENV)/.ready
	$(BIN)/python -m controller.room.diagram
	$(BIN)/python -m controller.interlock_table --update docs/interlocks.md
	$(BIN)/python -m simulators.invariants_table

# The pictures of docs/tutorial.md, made by the test that does what it tells. Needs Debian's chromium.
tutorial: $(VENV)/.ready
	IONGANTRY_SCREENSHOTS=docs/images $(BIN)/python -m pytest -q tests/browser/test_console_treatment.py

# Signs the shipped limits and overlays with a key that is made now and kept nowhere. Run it after each change of them, and after
# `make docs`. A facility signs its own with its own key: iongantry sign-limits.
AUTHOR ?= iongantry maintainers
APPROVER ?= iongantry release review
sign-limits: $(VENV)/.ready
	$(BIN)/iongantry sign-limits interlocks/limits.toml interlocks/limits.d/*.toml --public interlocks/limits.pub.json \
		--author "$(AUTHOR)" --approver "$(APPROVER)"

lock: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-header --generate-hashes --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) run build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
