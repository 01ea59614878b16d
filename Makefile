# `make nightly` and `make test` need only Python 3.11, Java 17 and the package registries.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= conf/sample.yaml
ARGS ?=
DRIVER_MEMORY ?= 4g
TESTERS ?= 2  # processes that run tests, each with a Spark of its own
DEALT := --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder
export PYSPARK_PYTHON := $(CURDIR)/$(BIN)/python
export SPARK_LOCAL_IP ?= 127.0.0.1

.PHONY: setup nightly test check lint audit clean-build

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml conf/spark-defaults.conf conf/log4j2.properties
	@command -v $(PYTHON) >/dev/null || { echo "sparkcf: $(PYTHON) is not on the PATH: install Python 3.11 or set PYTHON=" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the environment into $(VENV) (torch alone is about 3 GB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@home=$$($(BIN)/find_spark_home.py) && mkdir -p $$home/conf && cp conf/spark-defaults.conf conf/log4j2.properties $$home/conf/ \
		&& echo "spark.pyspark.python $(CURDIR)/$(BIN)/python" >> $$home/conf/spark-defaults.conf
	@$(BIN)/python -m sparkcf.jobs.session
	@$(BIN)/python -m sparkcf.local.compiled
	@touch $@

nightly: setup
	@$(BIN)/spark-submit --master 'local[*]' --driver-memory $(DRIVER_MEMORY) jobs/nightly.py --config '$(CONFIG)' $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(DEALT) $(ARGS)

check: setup lint  # no clusters, no whole nights
	@$(BIN)/python -m pytest $(DEALT) -m "not slow" $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Known weaknesses of the installed packages. pip-audit has an environment of its own: it must not move our pins.
audit: setup
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit==2.10.1; }
	@.venv-audit/bin/pip-audit --strict --skip-editable --progress-spinner off --path $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])') \
		$$(sed -n 's/^\([A-Z][A-Za-z0-9-]*\) .*/--ignore-vuln \1/p' conf/audit.txt)

clean-build:
	rm -rf build dist *.egg-info
