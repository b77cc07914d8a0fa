#!/bin/bash
# Gitea's runner 1.0.8: how long it tries to deliver a job's end to a forge that is away, with `report_close_timeout: 2m`.
#
# Guessed: for as long as the configuration says: two minutes for each try (as its example says), six in all for each of its two last reports.
# Seen:    ten tries for each of the two, whatever the time: where the connection is refused a try costs nothing, and the pauses between them
#          (0.1 s, then twice as long each time) are 51 s in all. After less than two minutes the runner ends, without a word about it, and the forge, once it is back,
#          waits for the job in vain, and fails it. Longer values of the key change nothing.
#
# Needs Go 1.26 or newer, git and Python. Builds the runner as a Go module's dependency (half a minute); a small program plays the forge, hands out
# a job and goes. Takes three minutes. Ends with 0 while that is so. Seen with 1.0.8 on Debian 12, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir "$work/build" "$work/home" "$work/here"
cd "$work/build"
printf 'module example.test/finding\n\ngo 1.26\n' >go.mod
export GOPATH=$work/go GOFLAGS=-modcacherw
go get -tool gitea.com/gitea/runner@v1.0.8 2>/dev/null
CGO_ENABLED=0 go build -trimpath -o runner gitea.com/gitea/runner
cat >"$work/forge.py" <<'PYTHON'
# The runner's service as far as it goes here: it speaks Protocol Buffers (runner.v1 of code.gitea.io/actions-proto-go 0.4.1).
import os
from http.server import BaseHTTPRequestHandler, HTTPServer


def field(number, content):
    return bytes([number << 3 | 2]) + length(len(content)) + content


def length(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + length(number >> 7)


WORKFLOW = b"on: push\njobs:\n  job:\n    runs-on: here\n    steps:\n      - run: sleep 3\n"
CONTEXT = b"".join(
    field(1, field(1, name) + field(2, field(3, value)))
    for name, value in ((b"repository", b"a/b"), (b"job", b"job"), (b"event_name", b"push"))
)


class Forge(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fetched = self.path.endswith("/FetchTask")
        answer = b""
        if fetched:
            answer = field(1, b"\x08\x01" + field(2, WORKFLOW) + field(3, CONTEXT))
        elif self.path.endswith("/Declare"):
            answer = field(1, b"")
        self.send_response(200)
        self.send_header("Content-Type", "application/proto")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        if fetched:
            self.wfile.flush()
            os._exit(0)  # the forge is away

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Forge)
with open("port", "w") as file:
    file.write(str(server.server_port))
os.rename("port", "listens")
server.serve_forever()
PYTHON
cd "$work/here"
python3 "$work/forge.py" &
until [ -e listens ]; do sleep 0.1; done
cat >.runner <<JSON
{"id": 1, "uuid": "00000000-0000-0000-0000-000000000001", "name": "here", "token": "none", "address": "http://127.0.0.1:$(cat listens)",
 "labels": ["here:host"], "ephemeral": true}
JSON
printf 'runner:\n  report_close_timeout: 2m\n' >config.yaml
began=$(date +%s)
HOME=$work/home timeout 900 "$work/build/runner" daemon --once --config config.yaml >said 2>&1 || true
seconds=$(($(date +%s) - began))
tail -n 30 said
echo "the runner ended after $seconds s"
if grep -qi 'refused\|retr\|report' said; then exit 1; fi
[ "$seconds" -gt 60 ]
[ "$seconds" -lt 240 ]
echo "still so: the runner gives up after some 100 s, not after twelve minutes"
