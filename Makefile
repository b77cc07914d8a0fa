# One word per task, the same everywhere; `make test` is what .ci/run runs. All of it happens in the rig (see rig/rig): RIG=trixie, bookworm or modular.
# Needs root. A rig that was started by hand (make rig) is used and left running.
SHELL := /bin/bash
RIG ?= trixie
export RIG
JOBS ?= 20
ROTATIONS ?= 0
OUTAGES ?=
PYTEST_ARGS ?=
EXAMPLES ?= 10000
FAULTS ?=
BENCH ?=
CONFORMANCE ?=
IMAGES ?=
FLEET ?=
GARM ?=
KVM ?=
GROWTH ?=
DASHBOARD ?=
WAY_IN ?=
CACHE ?=

# $(call in_rig,COMMANDS): with the rig running, and stopped afterwards if it was started here.
define in_rig
@set -e; rig/rig prepare; \
if ! rig/rig status >/dev/null; then trap 'rig/rig stop' EXIT; fi; \
rig/rig start; $(1)
endef

# The golden test images are built with the host's network; nothing else needs a registry.
test_image = rig/rig run --outside -- python -m tests.prepare
# The demo needs only one of them, the suite a stock cloud image as well.
demo_image = rig/rig run --outside -- python -m tests.prepare test-gitea
conformance_images = rig/rig run --outside -- python -m tests.prepare test-jobs test-jobs-docker
stock_image = rig/rig run --outside -- python -m tests.stock
# What vmrunner is measured against. virt-lightning asks for a newer libvirt binding than Debian's, but works with that one, without a compiler.
bench_packages = virtinst genisoimage openssh-client
bench_tools = rig/rig run --outside -- bash -ec 'python -m pip install --quiet -e "/src[bench]"; vl=/opt/virt-lightning; [ -e $$vl/bin/vl ] || { \
	apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends $(bench_packages) >/dev/null; \
	python -m venv --system-site-packages $$vl; $$vl/bin/pip install --quiet --no-deps virt-lightning==2.5.0 pyyaml; }'; $(stock_image)
# Ubuntu's keys: Debian 13 has them.
image_tools = rig/rig run --outside -- bash -ec '[ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] || { apt-get -qq update; \
	DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends ubuntu-keyring >/dev/null; } || echo "no keys of Ubuntu here" >&2'
prometheus = rig/rig run --outside -- bash -ec 'command -v promtool >/dev/null || { apt-get -qq update; \
	DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends prometheus >/dev/null; }'
# What fetches packages for machines, for the tests with the real programs; as a package each would start a service.
package_programs = rig/rig run --outside -- bash -ec 'command -v nginx >/dev/null && command -v docker-registry >/dev/null && command -v skopeo >/dev/null || { apt-get -qq update; \
	printf "\#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; \
	DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends nginx-light docker-registry skopeo >/dev/null; }'
plotting = rig/rig run --outside -- python -m pip install --quiet -e "/src[bench]"
actions_cache = rig/rig run --outside -- python -m tests.actions_cache
real_tools = rig/rig run --outside -- python -m tests.tooling
# Machines reach the public registries by a counted link, whose other end has the host's network.
cached_jobs = $(if $(findstring --save,$(CACHE)),$(plotting);) $(package_programs); $(actions_cache); rig/rig run --outside -- bash -ec "python -m tests.cached.base; python -m tests.prepare test-cached test-cached-whole; python -m tests.cached.tools"; \
	rig/rig run --outside -- python -m tests.cached.outside & rig/rig run -- python -m tests.cached
cache_measured = $(if $(findstring --git,$(CACHE)),git_pace,$(if $(findstring --machine,$(CACHE)),cache_machine,cache_pace))
audit_tools = rig/rig run --outside -- python -m pip install --quiet -e "/src[audit]"
short = -m 'not long'
# Tests that need neither machines nor a forge: two files at a time (some tests look at what others of their file did).
units = rig/rig run -- pytest -q -n 2 --dist loadfile $(short) tests/unit tests/model $(PYTEST_ARGS)
# $(call beside,QUIET,LOUD): both at once; what the first one prints is shown when the second one has ended.
beside = said=$$(mktemp); (set -e; $(1)) >"$$said" 2>&1 & quiet=$$!; failed=0; ($(2)) || failed=1; \
	wait "$$quiet" || failed=1; cat "$$said"; rm "$$said"; [ "$$failed" = 0 ]
# Those that share the rig's forge, and those that share its host: but for other firewalls, one of which takes the forge's port for a while.
other_firewalls = tests/net/test_host_firewalls.py
at_the_forge = rig/rig run -- pytest -q $(short) tests/forge $(PYTEST_ARGS)
on_the_host = rig/rig run -- pytest -q $(short) tests/libvirt tests/net --ignore $(other_firewalls) $(PYTEST_ARGS)
without_machines = $(call beside,$(units),$(call beside,$(on_the_host),$(at_the_forge)))
# Every script of ours that a shell runs (tests/unit/test_shell.py finds those that are missing here).
shell_scripts = .ci/run images/guest/docker-ready images/guest/docker-rehearsal images/guest/vmrunner-guest images/guest/vmrunner-hold packaging/build packaging/debian/vmrunner.postrm packaging/debian/vmrunner.prerm rig/browser rig/rig tests/conformance/plain.sh tests/deb.sh tests/garm/install.tmpl tests/way_in/run.sh
lint = rig/rig run -- ruff check .; rig/rig run -- ruff format --check .; rig/rig run -- mypy; \
	rig/rig run -- shellcheck $(shell_scripts)
with_machines = $(call beside,$(lint),rig/rig run -- pytest -q --durations=12 $(short) $(other_firewalls) tests/vm $(PYTEST_ARGS))

.PHONY: demo quick test long man images soak growth bench kvm faults unfinished outage conformance model garm scale fleet pictures page cache dashboard reference docs audit dist deb deb-test way-in release lint rig rig-stop rig-shell

# Where the host's own libvirtd runs, the demo uses that one.
demo: RIG := $(if $(filter file,$(origin RIG)),$(shell rig/rig choose),$(RIG))
demo:
	$(call in_rig,$(demo_image); rig/rig run -- python -m tests.demo)

test:
	$(call in_rig,$(test_image); $(without_machines); $(with_machines))

# All of it, with what `make test` leaves out for its time: once a night.
long: export VMRUNNER_TEST_MODEL_EXAMPLES ?= 1000
long: export VMRUNNER_TEST_HOSTILE_EXAMPLES ?= 600
long: short =
long:
	$(call in_rig,$(test_image); $(stock_image); $(actions_cache); $(real_tools); $(package_programs); $(without_machines); $(with_machines); rig/rig browser; rig/rig run -- pytest -q tests/browser)

# What one runs at each change: no machine, no forge.
quick:
	$(call in_rig,$(units); $(lint))

# Every recipe in images/, for real, and one on a stock cloud image; builds that are killed or have no room (IMAGES="--only debian-13 --kills 0"
# for a part); a machine of each image; the first `docker run` in clones; images that are broken in five ways: refused, and where that is
# overruled, rolled back without a job lost.
images:
	$(call in_rig,$(test_image); $(image_tools); rig/rig run --outside -- python -m tests.recipes $(IMAGES); \
		rig/rig run -- python -m tests.verified; rig/rig run -- python -m tests.docker; rig/rig run -- python -m tests.broken)

# ROTATIONS=10: the image is renewed so often meanwhile.
soak:
	$(call in_rig,$(test_image); rig/rig run -- python -m tests.soak --jobs $(JOBS) --rotations $(ROTATIONS) $(if $(OUTAGES),--outages $(OUTAGES)))

# 200 machines in a row on few addresses, each of which leaves 2,000 connections open: none is refused, nothing of the host grows
# (GROWTH="--machines 20 --connections 500" for less).
growth:
	$(call in_rig,$(demo_image); rig/rig run -- python -m tests.growth $(GROWTH))

# A fault at every step of a job's life; FAULTS="--only PATTERN" or "--sample N" for a part of the matrix, "--hosts 2" with another host on the forge,
# "--keep /cache/faults.txt" goes on behind the cells that passed before.
faults:
	$(call in_rig,$(test_image); rig/rig run -- python -m tests.faults $(FAULTS))

# Queue to first step, the same step by step, whole lives, network and disk, memory, throughput, 200 clones in a row; BENCH="--only queue --runs 5" for a part, "--save docs" for the docs.
bench:
	$(call in_rig,$(test_image); $(bench_tools); rig/rig run -- python -m tests.bench $(BENCH))

# On a host with KVM: the bench, and a report to send (kvm-report.txt: versions, processor, figures; no name and no address). Elsewhere a sentence says
# why there is none.
kvm:
	$(call in_rig,rig/rig run -- python -m tests.kvm --check; $(test_image); rig/rig run -- python -m tests.kvm $(KVM))

# Every way for a machine or its runner to end in the middle of a job, in booted, cloned and parked machines: no verdict is a success.
unfinished:
	$(call in_rig,$(demo_image); rig/rig run -- env VMRUNNER_TEST_WHOLE=1 pytest -q tests/vm/test_unfinished.py)

# The forge stopped for four minutes when a job ends, for two in the middle of one, and for 10 s while a runner starts.
outage:
	$(call in_rig,$(demo_image); rig/rig run -- env VMRUNNER_TEST_WHOLE=1 pytest -q tests/vm/test_outage.py)

# Small workflows in machines and, side by side, in a plain Debian tree; CONFORMANCE="--side booted --only shells" for a part.
conformance:
	$(call in_rig,$(conformance_images); rig/rig run -- python -m tests.conformance $(CONFORMANCE))

# A job at the real Gitea on a machine that the real GARM asks for, as a timeline; GARM="--jobs 50 --idle 2" for many, with kills,
# GARM="--compare 5" for the time to the first step beside `serve` and beside a provider of the usual kind ("--idle 1": where runners wait already);
# GARM="--own": the machine runs an install script of the pool's own.
garm:
	rig/rig garm
	$(call in_rig,$(demo_image); $(if $(findstring --compare,$(GARM)),$(bench_tools);) rig/rig run -- python -m tests.garm.demo $(GARM))

# Random lives of a manager on fakes.
model:
	$(call in_rig,VMRUNNER_TEST_MODEL_EXAMPLES=$(EXAMPLES) rig/rig run -- python -m tests.model)

# 1,000 machines, 5,000 jobs, and the memory of 100,000.
scale:
	$(call in_rig,rig/rig run -- python -m tests.scale)

# 2, 10 and 50 hosts with a manager each on one forge, on fakes: 500 jobs (FLEET="--hosts 2 --jobs 100" for a part); then two with real machines.
fleet:
	$(call in_rig,$(test_image); $(if $(findstring --save,$(FLEET)),$(bench_tools);) rig/rig run -- python -m tests.fleet $(FLEET); rig/rig run -- python -m tests.hosts)

# The pictures of docs/: Gitea's own page, in Chromium, and the drawings of docs/diagrams.
pictures:
	$(call in_rig,$(demo_image); rig/rig browser; rig/rig run -- python -m tests.pictures docs)

# The pages of docs/reference, made of the source.
reference:
	$(call in_rig,rig/rig run -- python -m tests.reference)

# The site, into dist/site; a link that leads nowhere, and whatever would be loaded from elsewhere, is an error.
docs:
	$(call in_rig,rig/rig run -- python -m mkdocs build --strict)

# The Grafana dashboard's queries and the alert rules, by a real Prometheus over a day of the fakes (DASHBOARD="--draw docs/dashboard.png").
dashboard:
	$(call in_rig,$(prometheus); $(if $(findstring --draw,$(DASHBOARD)),$(plotting);) rig/rig run -- bash -ec 'cd tests; promtool check rules ../docs/prometheus-rules.yaml; \
	promtool test rules prometheus-rules-test.yaml'; rig/rig run -- python -m tests.dashboard $(DASHBOARD))

# The page in Chromium, and what it costs: 1,000 machines, 100,000 machines of history, 1,000 connections.
page:
	$(call in_rig,rig/rig browser; rig/rig run -- pytest -q tests/browser; rig/rig run -- python -m tests.page)

# A gigabyte into the cache and out of it over loopback, 20 machines at once, and what the service takes of the host (CACHE="--mib 256" for less).
# CACHE=--machine: the same from a real machine, beside bare connections (CACHE="--machine --mib 256 --runs 3").
# CACHE=--jobs: what caches are worth to workflows that fetch packages from the public registries (CACHE="--jobs --only python --side cold --side all" for a part, "--save docs" for the docs).
# CACHE=--git: what the checkout of a large repository costs, whole, in part and with a reference (CACHE="--git --files 20000 --commits 20000").
cache:
	$(call in_rig,$(if $(findstring --jobs,$(CACHE)),$(cached_jobs),$(if $(findstring --machine,$(CACHE)),$(demo_image);) rig/rig run -- python -m tests.$(cache_measured)) $(filter-out --jobs --git --machine,$(CACHE)))

# Known vulnerabilities of the dependencies; fails where the service that knows them can't be asked.
audit:
	$(call in_rig,$(audit_tools); rig/rig run --outside -- python -m tests.audit)

# Man pages of every command, into dist/man.
man:
	$(call in_rig,rig/rig run -- python -m vmrunner.cli.man dist/man)

# Wheel and sdist, into dist/; twine checks them.
dist:
	@packaging/build python

# These and the Debian packages; lintian checks those.
deb:
	@packaging/build deb

# What `make deb` has built, on bare Debians, without a network: installed, upgraded, removed, purged.
deb-test:
	@tests/deb.sh

# The docs' own commands, from a bare Debian to a first job, an upgrade and the removal; the last line is JSON (WAY_IN="trixie bookworm").
way-in:
	@rig/rig prepare; tests/way_in/run.sh $(WAY_IN)

# All of it from a clean, tagged tree. Prints what to upload, and uploads nothing.
release:
	@packaging/build release

lint:
	$(call in_rig,$(lint))

rig:
	@rig/rig prepare && rig/rig start

rig-stop:
	@rig/rig stop

rig-shell: rig
	@rig/rig shell
