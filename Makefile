# One word per task, the same everywhere. `make test` is what .ci/run runs.
VENV ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmrunner/venv-$(shell sha256sum pyproject.toml | cut -c1-12)
PYTHON ?= python3

.PHONY: test
test: $(VENV)/ready
	$(VENV)/bin/python -m pytest -q $(PYTEST_ARGS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# A half-made environment has no `ready` file and is made again.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import ensurepip, venv' || (apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv)
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -e '.[test]'
	touch $@
