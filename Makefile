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

.PHONY: setup nightly test check lint clean-build

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml conf/spark-defaults.conf conf/log4j2.properties
	@command -v $(PYTHON) >/dev/null || { echo "sparkcf: $(PYTHON) is not on the PATH: install Python 3.11 or set PYTHON=" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the environment into $(VENV) (torch alone is about 3 GB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@home=$$($(BIN)/find_spark_home.py) && mkdir -p $$home/conf && cp conf/spark-defaults.conf conf/log4j2.properties $$home/conf/ \
		&& echo "spark.pyspark.python $(CURDIR)/$(BIN)/python" >> $$home/conf/spark-defaults.conf
	@$(BIN)/python -m sparkcf.jobs.session
	@touch $@

nightly: setup
	@$(BIN)/spark-submit --master 'local[*]' --driver-memory $(DRIVER_MEMORY) jobs/nightly.py --config $(CONFIG) $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(DEALT) $(ARGS)

check: setup lint  # no clusters, no whole nights
	@$(BIN)/python -m pytest $(DEALT) -m "not slow" $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean-build:
	rm -rf build dist *.egg-info
