# `make train` and `make test` do everything on a fresh clone, their own environment included.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: train test lint bench clean

train: .venv/ready
	$(BIN)/aswl train digits --output runs/digits-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: .venv/ready
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready
	$(BIN)/pytest bench --timeout=0 --benchmark-group-by=group --benchmark-columns=median,iqr,rounds $(ARGS)

# torch first: what depends on it must not choose its build, and the C++ library is built against its headers
.venv/ready: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" "setuptools>=77"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[test]"
	touch $@

clean:
	rm -rf .venv build *.egg-info runs aswl_kernels/*.so
