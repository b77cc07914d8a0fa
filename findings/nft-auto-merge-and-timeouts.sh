#!/bin/bash
# nftables 1.0.6: a set with `auto-merge` whose elements have timeouts.
#
# Guessed: merging only makes the list shorter; each address stays in the set for as long as it was added for.
# Seen:    neighbours become one element, which has the timeout of the one that was added last. An address that was added for good is gone when
#          its neighbour's second is over, and the other way round one that was added for a second stays for good. No command says so. With
#          `auto-merge` left out both stay as long as they should.
#
# Needs Debian 12 (apt-get, dpkg-deb) and unshare: runs in a network namespace of its own. Unpacks Debian's packages into a temporary folder.
# Ends with 0 while that is so. Seen with 1.0.6 of Debian 12, and by hand with 1.1.3 of Debian 13, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download 'nftables=1.0.6-*' 'libnftables1=1.0.6-*' libnftnl11 libmnl0 libjansson4 libxtables12 libedit2 libbsd0 libmd0 libgmp10 2>/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
cat >in-a-namespace.sh <<'SH'
set -euo pipefail
for also in auto-merge ''; do
  for pair in '10.0.0.7 10.0.0.8_timeout_1s' '10.0.0.8_timeout_1s 10.0.0.7'; do
    printf 'table inet t {\n set s {\n type ipv4_addr\n flags interval, timeout\n %s\n }\n}\n' "$also" >rules
    nft -f rules
    for element in $pair; do nft add element inet t s "{ ${element//_/ } }"; done
    sleep 2
    echo "${also:-not merged}: $pair: after two seconds there is$(nft list set inet t s | sed -n 's/.*elements = { \(.*\) }/ \1/p')"
    nft delete table inet t
  done
done
SH
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu PATH=$work/root/usr/sbin:$PATH
nft --version
unshare --map-root-user --net bash in-a-namespace.sh | tee said
diff said - <<'SAID'
auto-merge: 10.0.0.7 10.0.0.8_timeout_1s: after two seconds there is
auto-merge: 10.0.0.8_timeout_1s 10.0.0.7: after two seconds there is 10.0.0.7-10.0.0.8
not merged: 10.0.0.7 10.0.0.8_timeout_1s: after two seconds there is 10.0.0.7
not merged: 10.0.0.8_timeout_1s 10.0.0.7: after two seconds there is 10.0.0.7
SAID
echo "still so: of merged neighbours the last one's timeout is both's"
