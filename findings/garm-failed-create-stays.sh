#!/bin/bash
# GARM 0.2.1: a runner whose provider failed to create it.
#
# Guessed: GARM makes it again, five times in all, as its pool manager is written to.
# Seen:    the pool manager deletes it at the provider every five seconds and then sets its state from "error" to "pending_create", which its own
#          table of states does not permit. So it is never made again, and keeps its place in the pool until an admin deletes it.
#
# Needs Go. Looks into the module's source for both; the log of a GARM that runs (`make garm GARM="--jobs 12"`) has the line
# "invalid instance status transition from error to pending_create". Ends with 0 while that is so. Seen with 0.2.1 on Debian 13, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
export GOPATH=$work/go GOFLAGS=-modcacherw
cd "$work"
printf 'module example.test/finding\n\ngo 1.21\n' >go.mod
go mod download github.com/cloudbase/garm@v0.2.1
module=$work/go/pkg/mod/github.com/cloudbase/garm@v0.2.1
echo "What the table permits after an error:"
sed -n '/^var InstanceStatusTransitions /,/^}/p' "$module/params/params.go" | sed -n '/^\tcommonParams.InstanceError: {/,/^\t}/p' | tee permitted
echo "What the pool manager wants:"
sed -n '/) retryFailedInstancesForOnePool(/,/^}/p' "$module/runner/pool/pool.go" | grep 'Status:.*InstancePendingCreate'
if grep -q InstancePendingCreate permitted; then exit 1; fi
