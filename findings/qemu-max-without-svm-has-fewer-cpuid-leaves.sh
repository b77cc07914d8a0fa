#!/bin/bash
# QEMU 7.2, software emulation: `-cpu max,svm=off` takes more away than svm.
#
# Guessed: the same processor, without one flag.
# Seen:    the highest extended CPUID leaf falls from 0x8000000a to 0x80000001, since nothing but svm asks for more. With the leaves go the
#          brand string, the sizes of the caches and the sizes of addresses (0x80000008); Linux 6.1.192 boots on it and then copies the wrong
#          bytes between kernel and programs (programs abort, mount answers EINVAL). `vmx=off` takes no leaf; `xlevel=0x8000000a` beside
#          `svm=off` brings them back, and Linux comes up. QEMU 10.0 asks for 0x80000008 on its own. libvirt has no word for xlevel.
#
# Needs Debian 12 (apt-get, dpkg-deb). Unpacks Debian's packages into a temporary folder; no guest is started (-S).
# Ends with 0 while that is so. Seen with 7.2+dfsg-7+deb12u18 of Debian 12, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mapfile -t packages < <(apt-get -s install --no-install-recommends qemu-system-x86 | awk '/^Inst/ { print $2 }')
apt-get -qq download "${packages[@]}" 'qemu-system-x86=1:7.2+dfsg-*' seabios 2>/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
root/usr/bin/qemu-system-x86_64 --version | head -n 1

# highest CPU : the highest extended CPUID leaf of such a processor. QMP tells one capability's answer, then the number.
highest() {
  printf '%s\n' '{"execute": "qmp_capabilities"}' \
    '{"execute": "qom-get", "arguments": {"path": "/machine/unattached/device[0]", "property": "min-xlevel"}}' \
    '{"execute": "qom-get", "arguments": {"path": "/machine/unattached/device[0]", "property": "xlevel"}}' '{"execute": "quit"}' |
    root/usr/bin/qemu-system-x86_64 -L root/usr/share/qemu -L root/usr/share/seabios -accel tcg -cpu "$1" -nodefaults -display none -S -qmp stdio |
    sed -n 's/.*"return": \([0-9][0-9]*\).*/\1/p' |
    { read -r least; read -r set; printf '%s: asked for %#x, set to %#x\n' "$1" "$least" "$set"; }
}
for cpu in max max,vmx=off max,svm=off max,svm=off,xlevel=0x8000000a; do highest "$cpu"; done | tee said
diff said - <<'SAID'
max: asked for 0x8000000a, set to 0x8000000a
max,vmx=off: asked for 0x8000000a, set to 0x8000000a
max,svm=off: asked for 0x80000001, set to 0x80000001
max,svm=off,xlevel=0x8000000a: asked for 0x80000001, set to 0x8000000a
SAID
echo "still so: without svm the processor loses its extended CPUID leaves from 0x80000002 on"
