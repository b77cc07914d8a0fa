# One word per task, the same everywhere; `make test` is what .ci/run runs. All of it happens in the rig (see rig/rig): RIG=trixie or RIG=bookworm.
# Needs root. A rig that was started by hand (make rig) is used and left running.
SHELL := /bin/bash
RIG ?= trixie
export RIG
JOBS ?= 20
PYTEST_ARGS ?=

# $(call in_rig,COMMANDS): with the rig running, and stopped afterwards if it was started here.
define in_rig
@set -e; rig/rig prepare; \
if ! rig/rig status >/dev/null; then trap 'rig/rig stop' EXIT; fi; \
rig/rig start; $(1)
endef

# The golden test image is built with the host's network; nothing else needs a registry.
test_image = if [ -e tests/prepare.py ]; then rig/rig run --outside -- python -m tests.prepare; fi
lint = rig/rig run -- ruff check .; rig/rig run -- ruff format --check .; rig/rig run -- mypy --strict vmrunner

.PHONY: demo test soak lint rig rig-stop rig-shell

demo:
	$(call in_rig,$(test_image); rig/rig run -- python -m tests.demo)

test:
	$(call in_rig,$(test_image); rig/rig run -- pytest -q $(PYTEST_ARGS); $(lint))

soak:
	$(call in_rig,$(test_image); rig/rig run -- python -m tests.soak --jobs $(JOBS))

lint:
	$(call in_rig,$(lint))

rig:
	@rig/rig prepare && rig/rig start

rig-stop:
	@rig/rig stop

rig-shell: rig
	@rig/rig shell
