#!/bin/bash
# Gitea's runner 1.0.8: `needs.*.result`, the results of all jobs that a job needs.
#
# Guessed: the list of them, as on GitHub, so that `contains(needs.*.result, 'failure')` is true when one of them failed. It is the usual
#          condition of the last job of a workflow: the one that tells somebody, or the one check that a branch is protected by.
# Seen:    `.*` finds something in lists only, and nothing in an object such as `needs` or `steps`: no error, the result is empty,
#          `contains(…)` is always false. A gate with `if: always()` is green though the job before it failed, an alarm is never given, and
#          `!contains(needs.*.result, 'failure')` lets a deployment through. `needs.tests.result` is right.
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
cat >.gitea/workflows/gate.yaml <<'YAML'
on: [push]
jobs:
  tests:
    runs-on: here
    steps:
      - run: exit 1
  gate:
    runs-on: here
    needs: tests
    if: always()
    steps:
      - run: echo "all results are <${{ join(needs.*.result, ' ') }}>, that of tests is <${{ needs.tests.result }}>"
      - run: echo "a list has <${{ join(fromJSON('[{"a":1},{"a":2}]').*.a, ' ') }}>"
      - if: contains(needs.*.result, 'failure')
        run: exit 1
      - run: echo "the gate is open"
  alarm:
    runs-on: here
    needs: tests
    if: always() && contains(needs.*.result, 'failure')
    steps:
      - run: echo "the alarm was given"
  deploy:
    runs-on: here
    needs: tests
    if: always() && !contains(needs.*.result, 'failure')
    steps:
      - run: echo "deployed all the same"
YAML
git add -A
git -c user.name=finding -c user.email=finding@example.test commit -qm finding
code=0
HOME=$work/home timeout 120 "$work/build/runner" exec -W .gitea/workflows/gate.yaml --event push --image -self-hosted >said 2>&1 || code=$?
grep '   | \(all results\|a list\|the gate\|the alarm\|deployed\)\|Job ' said
echo "exit code $code"
grep -q '| all results are <>, that of tests is <failure>$' said
grep -q '| a list has <1 2>$' said
grep -q '| the gate is open$' said
grep -q '| deployed all the same$' said
if grep -q '| the alarm was given$' said; then exit 1; fi
grep -q 'gate.*Job succeeded' said
echo "still so: needs.*.result is empty, and what depends on it takes a failure for none"
