# The product from a fresh clone: each target makes .venv when it is missing or out of date, and then does its job.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESOLUTION ?= highest
# In two processes, each of which takes whole files, because the tests of a file share fixtures.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help train reference test stress versions space lint audit format browser clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# On Ctrl-C the launcher would end with a traceback and leave train.py behind: it ignores it, train.py does not.
train: $(VENV)/.installed ## train on the embedded digits (2 to 3 minutes on one CPU core) into outputs/digits
	trap '' INT; $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no training/train.py $(ARGS)

# Each of the six parts begins with the weights of the one before. What is finished is passed over, and what was stopped goes on.
PART = $(MAKE) train ARGS="--config training/configs/fashion_mnist$(1) $(ARGS)"
FIRST = --optimizer adamw --max_train_steps 10000 --batch_size 32 --learning_rate 0.002 --objective simple_and_vlb --timestep_sampling importance --importance_uniform_share 0.001
LARGE_BATCHES = --max_train_steps 11000 --importance_uniform_share 0.9 --mixed_precision bf16 --batch_size 64 --learning_rate 0.0014
reference: export OMP_NUM_THREADS ?= 2
reference: ## train as the Fashion-MNIST model that ships was, which took 8 hours of one or two CPU cores, into outputs/fashion_mnist_final
	$(call PART,.yaml $(FIRST))
	$(call PART,_refined.yaml)
	$(call PART,_refined.yaml --init_from outputs/fashion_mnist_refined --output_dir outputs/fashion_mnist_third --max_train_steps 10000)
	$(call PART,_refined.yaml --init_from outputs/fashion_mnist_third --output_dir outputs/fashion_mnist_fourth --max_train_steps 9000 \
		--importance_uniform_share 0.9 --mixed_precision bf16)
	$(call PART,_refined.yaml --init_from outputs/fashion_mnist_fourth --output_dir outputs/fashion_mnist_fifth $(LARGE_BATCHES))
	$(call PART,_refined.yaml --init_from outputs/fashion_mnist_fifth --output_dir outputs/fashion_mnist_final $(LARGE_BATCHES))

test: $(VENV)/.installed browser ## run every test
	$(BIN)/python -m pytest $(IN_TWO) $(ARGS)

# The demo's first, since it takes longest.
stress: $(VENV)/.installed browser ## break things on purpose, at length, and report into outputs/reliability.md
	$(BIN)/python -m pytest $(IN_TWO) tests/test_stress_space.py tests/test_stress_*.py --stress --timeout 1800 --stress-report outputs/reliability.md $(ARGS)

# In an environment of their own, without the pins: with RESOLUTION=lowest-direct, the oldest that pyproject.toml allows.
versions: browser ## run every test with the newest versions, or others: PYTHON=python3.13 RESOLUTION=lowest-direct
	$(PYTHON) -m venv --clear $(VENV)/versions
	$(VENV)/versions/bin/python -m pip install --quiet uv==0.13.9
	$(VENV)/versions/bin/uv pip install --quiet --python $(VENV)/versions --prerelease disallow \
		--resolution $(RESOLUTION) --editable ".[test]"
	$(VENV)/versions/bin/python -m pytest $(IN_TWO) \
		--deselect tests/test_supply_chain.py::test_what_is_installed_is_what_is_pinned $(ARGS)

space: $(VENV)/.installed ## serve the web demo of the models that come with the package
	$(BIN)/python space/app.py

lint: $(VENV)/.installed ## check style, formatting, and what ruff and bandit know of security
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive ddpm_hub training space --exclude ddpm_hub/models

# With tools in an environment of their own, so that the bill is that of the product.
audit: $(VENV)/.installed ## write docs/sbom.cdx.json, then ask the network for known vulnerabilities
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	$(VENV)/audit/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file docs/sbom.cdx.json $(VENV)
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

format: $(VENV)/.installed ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The browser that the tests drive: the system's, or Debian's package where we may install it, or Playwright's own.
browser: $(VENV)/.installed
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium; } || \
	$(BIN)/playwright install chromium

clean: ## remove .venv and caches, never outputs/
	rm -rf $(VENV) .pytest_cache .ruff_cache
