#!/bin/bash
# The Debian packages in dist/ on bare Debians: installed without a network from a repository that holds what they name and nothing else, upgraded,
# removed, purged. As root; run by `make deb-test` and `make release`.
#
# usage: tests/deb.sh [SUITE…]      bookworm and trixie, where none is named
# environment: OLD=FOLDER below the checkout with the packages of the version before; else they are these ones under a smaller number
set -euo pipefail

say() { echo "deb: $*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
quietly() { "$@" >/tmp/said 2>&1 || { cat /tmp/said; fail "$*"; }; }
page=(python3-starlette python3-uvicorn) # only recommended: a host without the page does without
apt() { DEBIAN_FRONTEND=noninteractive quietly apt-get -y --no-install-recommends "$@"; }

packages() { # packages FOLDER : those that this Debian needs
  local codename
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  echo "$1"/vmrunner_*_all.deb
  if [ "$codename" = bookworm ]; then echo "$1"/vmrunner-modules_*.deb; fi
}

prepare_repository() { # of all that apt would fetch
  local deb
  rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap # leaves man pages out
  # A host has it.
  quietly apt-get update
  apt install systemd
  mkdir -p /repo /new /old
  mapfile -t debs < <(packages /src/dist)
  cp "${debs[@]}" /new/
  apt-get -y -q --no-install-recommends --download-only -o Dir::Cache::archives=/repo install /new/*.deb "${page[@]}" >/tmp/said 2>&1 || { cat /tmp/said; fail "not installable"; }
  rm -rf /repo/partial /repo/lock /repo/vmrunner*
  cd /repo
  for deb in *.deb; do
    dpkg-deb --field "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d' ' -f1)"
  done >Packages
  rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
  echo 'deb [trusted=yes] file:/repo ./' >/etc/apt/sources.list
  say "$(find . -name '*.deb' | wc -l) packages in the repository, $(du -sm . | cut -f1) MB"
}

prepare_old() {
  if [ -n "${OLD:-}" ]; then mapfile -t debs < <(packages "/src/$OLD"); cp "${debs[@]}" /old/; return; fi
  local deb
  for deb in /new/*.deb; do
    rm -rf /tmp/package
    dpkg-deb -R "$deb" /tmp/package
    sed -i "s/$version/0.0.1/g" /tmp/package/DEBIAN/control
    sed -i 's/"[^"]*"/"0.0.1"/' /tmp/package/usr/lib/python3/dist-packages/vmrunner/_version.py 2>/dev/null || true
    touch /tmp/package/usr/share/doc/vmrunner/only-in-the-old-one 2>/dev/null || true
    (cd /tmp/package && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
    quietly dpkg-deb --root-owner-group -b /tmp/package "/old/${deb##*/}"
  done
}

leftovers() { # whatever has our name, on disk or among the accounts; the rig's own mark is none
  find / -xdev \( -path /new -o -path /old -o -path /repo -o -path /src -o -path /cache -o -path /tmp -o -path /proc \) -prune -o \
    -name '*vmrunner*' ! -name vmrunner-rig -print
  getent passwd vmrunner || true
  getent group vmrunner || true
  getent group libvirt | grep vmrunner || true
  getfacl -pn /var/log/libvirt/qemu 2>/dev/null | grep -E '^user:[0-9]' || true
}
units_in_use() { find /etc/systemd /var/lib/systemd -name 'vmrunner*' 2>/dev/null | grep -v deb-systemd-helper || true; }

look() { # look VERSION : it is installed, and works
  local page
  # Debian's ~dev is Python's .dev.
  [ "$(vmrunner --version | sed 's/\.\(dev\)/~\1/')" = "vmrunner $1" ] || fail "vmrunner --version says $(vmrunner --version), not $1"
  vmrunner --help >/dev/null
  # Every module of it: what is imported late is there, too.
  cat >/tmp/modules.py <<'EOF'
import importlib, pkgutil, sys
sys.path[:0] = ["/usr/lib/vmrunner/modules"]
import vmrunner
for module in pkgutil.walk_packages(vmrunner.__path__, "vmrunner."):
    if module.name != "vmrunner.image.versions.sbom":  # wants a module that is optional
        importlib.import_module(module.name)
EOF
  (cd / && python3 /tmp/modules.py) || fail "a module can't be imported"
  for page in vmrunner vmrunner-up vmrunner-image; do [ -e "/usr/share/man/man1/$page.1.gz" ] || fail "no man page $page"; done
  grep -q _VMRUNNER_COMPLETE /usr/share/bash-completion/completions/vmrunner || fail "no completion"
  vmrunner config example | cmp - /usr/share/doc/vmrunner/examples/vmrunner.toml || fail "no templates"
  id -nG vmrunner | grep -qw libvirt || fail "no account vmrunner in the group libvirt"
  [ -d /etc/vmrunner/recipes ] || fail "no folder of recipes"
  quietly systemd-analyze verify /usr/lib/systemd/system/vmrunner*.service /usr/lib/systemd/system/vmrunner*.timer
  # The stop of that one ends all machines, and an upgrade must not.
  if grep -h deb-systemd-invoke /var/lib/dpkg/info/vmrunner.* | grep -E 'halt|up.service|refresh.service'; then fail "units that an upgrade must not touch"; fi
  [ -z "$(units_in_use)" ] || fail "enabled before it is configured: $(units_in_use)"
}

offline() {
  local found
  [ "$(awk -F: 'NR > 2 && !/ lo:/' /proc/net/dev)" = "" ] || fail "there is a network"
  quietly apt-get update
  found=$(leftovers)
  [ -z "$found" ] || fail "not bare: $found"
  apt install /old/*.deb
  vmrunner --help >/dev/null
  apt install "${page[@]}"
  look 0.0.1
  say "0.0.1 is installed"
  sed 's/^# *kind = .*/kind = "forgejo"/' /usr/share/doc/vmrunner/examples/vmrunner.toml >/etc/vmrunner/vmrunner.toml
  echo secret >/etc/vmrunner/forge-token
  install -d -o vmrunner /var/lib/vmrunner
  echo history >/var/lib/vmrunner/history.sqlite
  apt install /new/*.deb
  look "$version"
  [ ! -e /usr/share/doc/vmrunner/only-in-the-old-one ] || fail "files of the old version stay"
  say "upgraded to $version"
  vmrunner config check >/tmp/said 2>&1 && fail "config check found nothing in the example"
  grep -q Traceback /tmp/said && { cat /tmp/said; fail "a traceback"; }
  apt install --allow-downgrades /old/*.deb
  look 0.0.1
  [ -e /usr/share/doc/vmrunner/only-in-the-old-one ] || fail "no files of the old version after the way back"
  [ "$(cat /etc/vmrunner/forge-token /var/lib/vmrunner/history.sqlite)" = $'secret\nhistory' ] || fail "the way back took token or history"
  say "back to 0.0.1"
  apt install /new/*.deb
  look "$version"
  apt remove vmrunner
  [ -e /usr/bin/vmrunner ] && fail "the program is there after remove"
  [ -e /etc/vmrunner/vmrunner.toml ] && [ -e /var/lib/vmrunner/history.sqlite ] || fail "remove took configuration or history"
  say "removed"
  apt install /new/*.deb
  look "$version"
  [ "$(cat /etc/vmrunner/forge-token)" = secret ] || fail "the token is another"
  apt purge vmrunner 'vmrunner-modules*'
  found=$(leftovers | sort)
  [ "$found" = $'/etc/vmrunner\n/etc/vmrunner/vmrunner.toml' ] || fail "purge leaves more than what the admin made: $found"
  found=$(cd /etc/vmrunner && echo *)
  [ "$found" = "forge-token vmrunner.toml" ] || fail "of the admin's files there are $found"
  rm -r /etc/vmrunner
  say "purged: what the admin made is left, and nothing else"
}

inside() {
  say "on $(sed -n 's/^PRETTY_NAME=//p' /etc/os-release)"
  prepare_repository
  version=$(dpkg-deb --field /new/vmrunner_*_all.deb Version)
  export version
  prepare_old
  unshare --net bash /src/tests/deb.sh _offline
}

case ${1:-} in
  _inside) inside ;;
  _offline) offline ;;
  *)
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    [ $# -gt 0 ] || set -- bookworm trixie
    for suite; do rig/rig bare "$suite" -- env "OLD=${OLD:-}" bash /src/tests/deb.sh _inside; done
    ;;
esac
