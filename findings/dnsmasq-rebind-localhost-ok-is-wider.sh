#!/bin/bash
# dnsmasq 2.90 with `stop-dns-rebind` and `rebind-localhost-ok`: which addresses are let through.
#
# Guessed: those that the manual names, 127.0.0.0/8 and ::1; and of a name with a loopback and a private address the loopback one.
# Seen:    also 0.0.0.0 (and all of 0.0.0.0/8) and ::, which a Linux client takes for itself, too. One private address beside a loopback one
#          still takes the whole answer away, and a loopback address written as IPv4-mapped IPv6 is let through like the plain one.
#
# Needs Debian 12 (apt-get, dpkg-deb), python3 with venv, ip and unshare: runs in a network namespace of its own, beside an upstream that is
# a second dnsmasq. Unpacks Debian's packages into a temporary folder, and installs dnspython from PyPI.
# Ends with 0 while that is so. Seen with 2.90 of Debian 12, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download 'dnsmasq-base=2.90-*' libnftables1 libnftnl11 libmnl0 libjansson4 libxtables12 libedit2 libbsd0 libmd0 libgmp10 \
  libnetfilter-conntrack3 libnfnetlink0 libdbus-1-3 libidn2-0 libunistring2 libnettle8 libhogweed6 2>/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q dnspython==2.7.0
cat >ask.py <<'PY'
import dns.message, dns.query

for name in ("loopback", "zero", "zero-net", "mixed", "private"):
    answer = dns.query.udp(dns.message.make_query(f"{name}.example", "A"), "127.0.0.1", timeout=5)
    print(name, *(item.address for rrset in answer.answer for item in rrset))
for name in ("loopback6", "none6", "mapped6", "private6"):
    answer = dns.query.udp(dns.message.make_query(f"{name}.example", "AAAA"), "127.0.0.1", timeout=5)
    print(name, *(item.address for rrset in answer.answer for item in rrset))
PY
cat >in-a-namespace.sh <<'SH'
set -euo pipefail
ip link set lo up
common=(--no-daemon --conf-file=/dev/null --no-hosts --no-resolv --bind-interfaces)
records=(loopback,127.0.0.1 zero,0.0.0.0 zero-net,0.1.2.3 mixed,127.0.0.1 mixed,10.1.2.3 private,10.1.2.3)
records+=(loopback6,::1 none6,:: mapped6,::ffff:127.0.0.1 private6,::ffff:10.1.2.3)
options=()
for record in "${records[@]}"; do options+=("--host-record=${record/,/.example,}"); done
dnsmasq "${common[@]}" --listen-address=127.0.0.2 "${options[@]}" 2>/dev/null &
upstream=$!
dnsmasq "${common[@]}" --listen-address=127.0.0.1 --server=127.0.0.2 --stop-dns-rebind --rebind-localhost-ok 2>/dev/null &
trap 'kill "$upstream" "$!"; wait' EXIT
sleep 1
venv/bin/python ask.py
SH
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu PATH=$work/root/usr/sbin:$PATH
dnsmasq --version | head -n 1
unshare --map-root-user --net bash in-a-namespace.sh | tee said
diff said - <<'SAID'
loopback 127.0.0.1
zero 0.0.0.0
zero-net 0.1.2.3
mixed
private
loopback6 ::1
none6 ::
mapped6 ::ffff:127.0.0.1
private6
SAID
echo "still so: rebind-localhost-ok lets 0.0.0.0/8 and :: through as well"
