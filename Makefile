# `make train` and `make test` do everything on a fresh clone, their own environment included.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: train test coverage lint bench sanitize clean

train: .venv/ready
	$(BIN)/aswl train digits --output runs/digits-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: .venv/ready # a file to a process, since what its tests share is made once
	$(BIN)/pytest -n auto --dist loadfile $(ARGS)

coverage: .venv/ready # nearly doubles the time of kernels in Triton's interpreter
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready
	$(BIN)/pytest bench --timeout=0 --benchmark-group-by=group --benchmark-columns=median,iqr,rounds $(ARGS)

# The operators' tests on a copy whose C++ library checks every address and every arithmetic overflow: minutes, not seconds.
# Python's own memory is not the point: no leak check, and malloc, so that a write past a small buffer is seen.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
sanitize: .venv/ready
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r LICENSE README.md pyproject.toml setup.py csrc aswl aswl_kernels tests build/sanitize && rm -f build/sanitize/aswl_kernels/*.so
	cd build/sanitize && ASWL_NATIVE=1 CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(abspath $(BIN))/python setup.py build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONMALLOC=malloc PYTHONPATH=$$PWD \
		$(abspath $(BIN))/pytest -q -p no:cacheprovider --capture=sys --timeout=1800 tests/aswl_kernels $(ARGS)

# torch first: what depends on it must not choose its build, and the C++ library is built against its headers
.venv/ready: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" "setuptools>=77"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[test]"
	touch $@

clean:
	rm -rf .venv build *.egg-info runs aswl_kernels/*.so
