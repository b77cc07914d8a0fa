#!/bin/bash
# iproute2 6.1.0: `ip -j link show up`, the interfaces that are up, as JSON.
#
# Guessed: a list of those that are up: `[]` if none is, as the same command without `-j` prints no line.
# Seen:    each interface that is down is in the list as an empty object, so that its length is how many interfaces there are, and the first
#          thing that reads `["ifname"]` of each fails; where nothing is up it is `[{},{}]`. With other conditions, such as `master bridge0`, the
#          list is clean. And `ip -j netns list` without a namespace prints nothing at all, which is no JSON.
#
# Needs Debian 12 (apt-get, dpkg-deb), python3 and unshare: runs in namespaces of its own. Unpacks Debian's packages into a temporary folder.
# Ends with 0 while that is so. Seen with 6.1.0 of Debian 12, and by hand with 6.15.0 of Debian 13, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download 'iproute2=6.1.0-*' libbpf1 libelf1 libmnl0 libdb5.3 libbsd0 libmd0 libcap2 libcap2-bin libtirpc3 libxtables12 2>/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
cat >in-a-namespace.sh <<'SH'
set -euo pipefail
ip link add bridge0 type bridge
ip link add end0 type veth peer name end1
ip link set end0 master bridge0
objects() { python3 -c 'import json, sys; found = json.load(sys.stdin); print(len(found), "objects, with", *(each["ifname"] for each in found if each))'; }
all=$(ip -o link show | wc -l)
told() { echo "$*: $(ip -o "$@" | wc -l) lines, $(ip -j "$@" | objects)" | sed "s/, $all objects/, as many objects as interfaces/"; }
told link show master bridge0
told link show up
ip link set bridge0 up
told link show up
echo "netns list: $(ip -j netns list | wc -c) bytes"
SH
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu PATH=$work/root/usr/sbin:$work/root/sbin:$work/root/bin:$PATH
ip -V
unshare --map-root-user --net --mount bash in-a-namespace.sh | tee said
diff said - <<'SAID'
link show master bridge0: 1 lines, 1 objects, with end0
link show up: 0 lines, as many objects as interfaces, with
link show up: 1 lines, as many objects as interfaces, with bridge0
netns list: 0 bytes
SAID
echo "still so: what is down is an empty object"
