#!/bin/bash
# Gitea's runner 1.0.8: a line in $GITHUB_ENV that is no NAME=value.
#
# Guessed: the step that wrote it fails, as on GitHub; the steps after it are skipped, and those with `if: failure()` run.
# Seen:    the next steps run as if nothing had happened, `job.status` is "success" in them, an `if: failure()` step does not run, and only
#          at its end the job is failed. So a release step behind the broken line runs, in a job that is red afterwards.
#
# Needs Go 1.26 or newer and git. Builds the runner as a Go module's dependency (half a minute) and runs it with `exec`: no forge.
# Ends with 0 while that is so. Seen with 1.0.8 on Debian 12, November 2026.
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
cat >.gitea/workflows/broken.yaml <<'YAML'
on: [push]
jobs:
  broken:
    runs-on: here
    steps:
      - run: echo "no equals sign" >>"$GITHUB_ENV"
      - run: echo "the next step sees ${{ job.status }}"
      - if: failure()
        run: echo "a step for failures ran"
YAML
git add -A
git -c user.name=finding -c user.email=finding@example.test commit -qm finding
code=0
HOME=$work/home timeout 120 "$work/build/runner" exec -W .gitea/workflows/broken.yaml --event push --image -self-hosted >said 2>&1 || code=$?
grep '   | \(the next\|a step\)\|Job ' said
echo "exit code $code"
grep -q '| the next step sees success$' said
if grep -q '| a step for failures ran$' said; then exit 1; fi
grep -q 'Job failed' said
[ "$code" -eq 1 ]
echo "still so: the steps after a broken command file run, and the job fails all the same"
