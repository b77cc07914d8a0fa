#!/bin/bash
# Gitea's runner 1.0.8: an entry of `matrix.include` that names none of the matrix's own keys.
#
# Guessed: it is added to every combination, as GitHub's documentation has it: `include: [{shell: dash}]` gives each of them `matrix.shell`.
# Seen:    it becomes a job of its own, in which all other keys are empty, and is added to none: two systems make three jobs, with
#          `matrix.shell` in the third alone, whose `matrix.system` is empty. Nothing says so. An entry that names a key of the matrix is added
#          as it should be.
#
# Needs Go 1.26 or newer and git. Builds the runner as a Go module's dependency (half a minute) and runs it with `exec`: no forge.
# Ends with 0 while that is so. Seen with 1.0.8 on Debian 12, November 2026; Gitea 1.26.0, which splits a workflow into jobs with its own
# module modules/actions/jobparser, makes the same three of it (run by hand).
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir "$work/build" "$work/home" "$work/project"
cd "$work/build"
printf 'module example.test/finding\n\ngo 1.26\n' >go.mod
export GOPATH=$work/go GOFLAGS=-modcacherw
go get -tool gitea.com/gitea/runner@v1.0.8 2>/dev/null
CGO_ENABLED=0 go build -trimpath -o runner gitea.com/gitea/runner
cd "$work/project"
git init -q .
mkdir -p .gitea/workflows
cat >.gitea/workflows/matrix.yaml <<'YAML'
on: [push]
jobs:
  cell:
    runs-on: here
    strategy:
      matrix:
        system: [debian-12, debian-13]
        include:
          - shell: dash
          - system: debian-13
            kernel: backports
    steps:
      - run: echo "system <${{ matrix.system }}> shell <${{ matrix.shell }}> kernel <${{ matrix.kernel }}>"
YAML
git add -A
git -c user.name=finding -c user.email=finding@example.test commit -qm finding
HOME=$work/home timeout 120 "$work/build/runner" exec -W .gitea/workflows/matrix.yaml --event push --image -self-hosted >said 2>&1
sed -n 's/.*   | \(system .*\)/\1/p' said | sort | tee cells
diff cells - <<'CELLS'
system <> shell <dash> kernel <>
system <debian-12> shell <> kernel <>
system <debian-13> shell <> kernel <backports>
CELLS
echo "still so: an entry for all combinations is added to none, and is a third job"
