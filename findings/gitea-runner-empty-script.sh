#!/bin/bash
# Gitea's runner 1.0.8: a step whose script holds an expression that can't be evaluated.
#
# Guessed: the step fails and says why, as on GitHub, where the job ends there.
# Seen:    the whole script becomes empty, not only the expression's place: a shell runs nothing, the step succeeds, and so does the job. The
#          reason stands in the log, in a line that fails nothing. Among such expressions are ones that GitHub knows: fromJSON of an output that
#          is empty (its step was skipped), a number above 2^31, the function case(). An `if:` with the same expression does fail the job.
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
cat >.gitea/workflows/empty.yaml <<'YAML'
on: [push]
jobs:
  scripts:
    runs-on: here
    steps:
      - id: plan
        run: echo "targets=" >>"$GITHUB_OUTPUT"
      - id: json
        run: |
          echo "checked ${{ fromJSON(steps.plan.outputs.targets)[0] }}"
          exit 1
      - id: number
        run: |
          echo "compared ${{ github.run_number < 3000000000 }}"
          exit 1
      - id: case
        run: |
          echo "chosen ${{ case(true, 'a', 'b') }}"
          exit 1
      - run: echo "outcomes ${{ steps.json.outcome }} ${{ steps.number.outcome }} ${{ steps.case.outcome }}, job ${{ job.status }}"
  condition:
    runs-on: here
    steps:
      - if: fromJSON('')
        run: echo "the condition was true"
YAML
git add -A
git -c user.name=finding -c user.email=finding@example.test commit -qm finding
code=0
HOME=$work/home timeout 120 "$work/build/runner" exec -W .gitea/workflows/empty.yaml --event push --image -self-hosted >said 2>&1 || code=$?
grep '   | \(checked\|compared\|chosen\|outcomes\|the condition\)\|Job ' said
echo "exit code $code"
grep -q '| outcomes success success success, job success$' said
grep -q 'scripts.*Job succeeded' said
if grep -q '| \(checked\|compared\|chosen\|the condition was true\)' said; then exit 1; fi
grep -q 'Unable to interpolate expression' said
grep -q 'condition.*Job failed' said
[ "$code" -eq 1 ]
echo "still so: a script with an expression that can't be evaluated is empty, and a success"
