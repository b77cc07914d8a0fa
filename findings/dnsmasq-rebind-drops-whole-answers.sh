#!/bin/bash
# dnsmasq 2.90 with `stop-dns-rebind`: a name that has a public and a private address.
#
# Guessed: the private address is taken out, as the manual's "reject addresses from upstream nameservers which are in the private ranges" reads,
#          and the public one is answered; or the query is refused, so that the client asks elsewhere.
# Seen:    the whole answer is gone, the public address with it, and what the client gets is a success without an address: "no such record", as
#          if the name had none. `rebind-domain-ok` helps the name that is asked for only: an alias that leads to a name of an allowed domain,
#          which is answered when it is asked for itself, has no address, either.
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
import dns.message, dns.query, dns.rcode

for name in ("both.example", "public.example", "alias.example", "inside.allowed.example"):
    answer = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", timeout=5)
    found = [item.address for rrset in answer.answer for item in rrset if item.rdtype.name == "A"]
    print(name, dns.rcode.to_text(answer.rcode()), *found)
PY
cat >in-a-namespace.sh <<'SH'
set -euo pipefail
ip link set lo up
common=(--no-daemon --conf-file=/dev/null --no-hosts --no-resolv --bind-interfaces)
dnsmasq "${common[@]}" --listen-address=127.0.0.2 --host-record=both.example,198.18.0.1 --host-record=both.example,10.1.2.3 \
  --host-record=public.example,198.18.0.1 --host-record=inside.allowed.example,10.4.5.6 --cname=alias.example,inside.allowed.example \
  2>/dev/null &
upstream=$!
dnsmasq "${common[@]}" --listen-address=127.0.0.1 --server=127.0.0.2 --stop-dns-rebind --rebind-domain-ok=/allowed.example/ 2>/dev/null &
trap 'kill "$upstream" "$!"; wait' EXIT
sleep 1
venv/bin/python ask.py
SH
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu PATH=$work/root/usr/sbin:$PATH
dnsmasq --version | head -n 1
unshare --map-root-user --net bash in-a-namespace.sh | tee said
diff said - <<'SAID'
both.example NOERROR
public.example NOERROR 198.18.0.1
alias.example NOERROR
inside.allowed.example NOERROR 10.4.5.6
SAID
echo "still so: one private address hides all of a name's addresses"
