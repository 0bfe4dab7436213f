# make demo      installs, then runs `rlhf demo` into runs/demo
# make test      installs, then runs lint, types and tests, without those marked slow or gpu
# make test-all  the same with the slow tests
# make bench RUN=runs/demo   the benchmarks, into runs/bench; a quarter of an hour on 2 quiet cores
# make image TAG=registry/prefpaint-ray:gpu   container image; for CPU with TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= $(shell for v in 3.11 3.12; do p=$$(command -v python$$v) && $$p -c 'import sys' 2>/dev/null && echo $$p && break; done || command -v python3)
# An index with CPU or CUDA builds of PyTorch, e.g. https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
BUILDER ?= docker
# Resolves versions for `make lock` alone: https://docs.astral.sh/uv
UV ?= uv
COMPILE := $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo bench test test-computing test-waiting test-all lint wheel image lock clean

install: $(VENV)/.installed

# Every file is compared with its hash, the build tools' included; PyTorch alone has none, since each index has a build
# of its own. It comes last and finds all that it needs besides CUDA. Of imgsim the weights alone are read, so the OpenCV
# that it asks for is left out.
$(VENV)/.installed: requirements.lock requirements-build.lock requirements-torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "Python 3.11 or 3.12 is needed; make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r requirements-build.lock
	$(PIP) --no-deps --require-hashes --no-build-isolation -r requirements.lock
	$(PIP) --no-warn-conflicts $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements-torch.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/rlhf demo $(DEMO_ARGS)

bench: install
	@test -d "$(RUN)" || { echo 'make bench RUN=runs/demo, a finished demo'; exit 2; }
	$(BIN)/python -m benchmarks --run $(RUN) --out runs/bench

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Both halves run at once, since tests of Ray and of pages mostly wait; each prints its output at its end.
test: lint
	$(MAKE) --no-print-directory --jobs 2 --output-sync test-computing test-waiting

test-computing: install
	$(BIN)/python -m pytest -m 'not (ray or browser or slow or gpu)'

test-waiting: install
	$(BIN)/python -m pytest -m '(ray or browser) and not (slow or gpu)'

test-all: lint
	$(BIN)/python -m pytest -m ''

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

image:
	@test -n "$(TAG)" || { echo 'make image TAG=registry/prefpaint-ray:gpu'; exit 2; }
	$(BUILDER) build --file cluster/Dockerfile --build-arg TORCH_INDEX=$(TORCH_INDEX) --tag $(TAG) .

# Follows pyproject.toml and keeps the versions that still fit; --upgrade-package NAME in UPGRADE takes a newer one.
lock:
	$(COMPILE) $(UPGRADE) --extra dev --extra networks --constraint requirements-torch.txt --no-emit-package torch \
		--output-file requirements.lock pyproject.toml
	printf 'editables\nhatchling\nsetuptools\nwheel\n' | $(COMPILE) $(UPGRADE) --constraint requirements.lock \
		--output-file requirements-build.lock -

clean:
	rm -rf $(VENV) dist build
