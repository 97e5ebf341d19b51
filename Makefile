# Each target makes the environment it needs, from a machine with Python >= 3.11, make, a C and a C++ compiler.
PYTHON ?= python3
# interpreters of `make test-all`, names (on PATH, or of pyenv) or paths; one that is not there is left out and said so
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find streaminfer -name '*_cy.py' -o -name '*_cy.pxd' -o -name '*kernels.py' -o -path '*_compiled_kernels/*.py') \
	streaminfer/_internal/loading/numba_jit.py
STAMPS := $(VENV)/stamps
INSTALL := $(BIN)/python benchmarks/servers/install.py
# make stamps at the same time, since an installation uses one core, or waits
PREPARE = @+$(MAKE) --no-print-directory --jobs=3 $(addprefix $(STAMPS)/,$(1))
# two processes more than cores, since many tests wait for servers; each file's tests stay together: they share them
PYTEST := $(BIN)/python -m pytest --numprocesses $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2) --dist loadfile

# files with tests that also run uncompiled: the others need not be collected
UNCOMPILED = $(shell grep -rlF mark.uncompiled tests --include='test_*.py')

# where images for Python set it, each process that is started compiles all that it imports, and each worker all tests
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all check bench docs clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	@$(INSTALL) uv || echo 'uv cannot be installed here: pip takes its place'
	@mkdir -p $(STAMPS) && touch $@

# what the build needs, and no more: it begins while the rest is installed
$(STAMPS)/build-system: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $@.txt
	$(INSTALL) --requirement $@.txt
	@touch $@

# an editable install and what it depends on; nothing is compiled yet
$(STAMPS)/install: $(STAMPS)/build-system
	STREAMINFER_DISABLE_COMPILED=1 $(INSTALL) --no-build-isolation --editable '.[all]'
	@touch $@

# the compiled modules, required, beside their sources; only what changed is compiled again
$(STAMPS)/build: $(STAMPS)/build-system setup.py $(SOURCES)
	STREAMINFER_REQUIRE_COMPILED=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# make .venv/stamps/group-test+demo: the dependencies of groups of pyproject.toml
$(STAMPS)/group-%: $(STAMPS)/install
	$(INSTALL) $(addprefix --group ,$(subst +, ,$*))
	@touch $@

# Triton, MLServer, KServe's server, Ray and the voice frameworks, each in an environment of its own
SERVERS := kserve livekit mlserver perf_analyzer pipecat ray triton
$(STAMPS)/servers: $(STAMPS)/install benchmarks/servers/environments.py
	$(BIN)/python benchmarks/servers/environments.py $(SERVERS)
	@touch $@

# pytest rewrites the assertions of all tests: once here, while modules are compiled, and not in each process; tests of
# modules that are not there yet are errors here, which the suite repeats where they stay
$(STAMPS)/bytecode: | $(filter $(STAMPS)/group-%,$(MAKECMDGOALS))
	STREAMINFER_DISABLE_COMPILED=1 $(BIN)/python -m pytest --collect-only --quiet > $@.log || test $$? = 2
	@touch $@

# where no kernel is compiled ahead of time Numba does it: once here, and not in each process of the uncompiled tests
$(STAMPS)/kernels: $(STAMPS)/install $(SOURCES)
	STREAMINFER_DISABLE_COMPILED=1 $(BIN)/python -m streaminfer warmup
	@touch $@

# what only Debian has, where it may be installed; elsewhere the suite says which tests it leaves out
DEBIAN := chromium ip:iproute2 unshare:util-linux prometheus wrk
ifdef STREAMINFER_TEST_EVERYTHING
# the image of examples/container takes minutes, and what it shows changes seldom
DEBIAN += buildah mmdebstrap /usr/lib/podman/netavark:netavark
endif
$(STAMPS)/debian:
	@mkdir -p $(STAMPS)
	@missing=; for pair in $(DEBIAN); do command -v $${pair%:*} > /dev/null || missing="$$missing $${pair#*:}"; done; \
	if [ -z "$$missing" ]; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends $$missing; } \
			> $(STAMPS)/debian.log 2>&1 && touch $@ || { tail -5 $(STAMPS)/debian.log; echo "not installed:$$missing"; }; \
	else echo "not here, and only root may install them with apt-get:$$missing"; fi

demo: ## real models, live audio and video on this machine; writes report.html
	$(call PREPARE,group-demo build)
	$(BIN)/python examples/live_demo.py

test: ## the whole suite, compiled, then its state machines uncompiled
	$(call PREPARE,group-test+demo build servers debian bytecode kernels)
	$(PYTEST)
	STREAMINFER_DISABLE_COMPILED=1 $(PYTEST) -m uncompiled $(UNCOMPILED)

test-all: ## `make test` on each CPython of PYTHONS that is here, each in an environment of its own
	@ran=; missing=; failed=; \
	for python in $(PYTHONS); do \
		version=; \
		for found in $$python $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin/$$python; do \
			version=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) && break; \
		done; \
		test -n "$$version" || { missing="$$missing $$python"; continue; }; \
		echo "== CPython $$version ($$found)"; \
		if $(MAKE) test PYTHON=$$found VENV=.venv-$$version; then ran="$$ran $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "passed:$${ran:- none}; failed:$${failed:- none}; not here:$${missing:- none}"; \
	test -n "$$ran" -a -z "$$failed"

check: ## lint, types, import contracts
	$(call PREPARE,group-lint+test+demo build $(if $(filter test,$(MAKECMDGOALS)),servers debian bytecode kernels))
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/lint-imports

bench: ## every figure beside its baseline, measured in the same run
	$(call PREPARE,group-bench+test+demo build servers debian)
	$(BIN)/python benchmarks/run.py

docs: ## the documentation site, in docs/_build/html; warnings are errors
	$(call PREPARE,group-docs build)
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html

clean: ## removes environments, builds and reports
	rm -rf $(VENV) .venv-* build dist *.egg-info docs/_build report.html .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find streaminfer -name '*.so' -delete -o -name '*.c' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
