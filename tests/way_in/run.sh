#!/bin/bash
# From a bare Debian to a first job, an upgrade and the removal, by the commands of the docs, literally: README's five steps, docs/howto/upgrade.md,
# docs/howto/remove.md. Against real Gitea and the machine's own libvirt, in a tree and a network namespace that are gone afterwards. As root; run by
# `make way-in`. The last line is JSON: seconds from the first command to the first job that succeeded, and to each step before.
#
# usage: tests/way_in/run.sh [SUITE…]     trixie, where none is named, or bookworm
#
# What is not as on a host: systemd is not the first process, so systemctl.py starts what the units say, without their sandbox; libvirtd is started by
# hand. The registries are reached through a relay. Gitea's runner is a file that is there, and actions/checkout a small one of our own: their sites
# need the internet. apt is told yes.
set -euo pipefail

say() { echo "way-in: $*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
forge_host=forge.example
forge_address=203.0.113.10
forge=http://$forge_host:3000
here=/src/tests/way_in
tools=${RIG_TOOLS:-} # another Debian tree, whose programs are not the host's own

# ---- outside: a network namespace, and who relays to the registries ---------------------------------------------------------------------

registries() { # registries : NAME:PORT of what apt and pip fetch from
  set +o pipefail # one of the files may be missing
  cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | sed -nE 's|^(URIs:\|deb) *(\[[^]]*\])? *http(s?)://([^/ ]+).*|\4 \3|p' |
    awk '{print $1 ($1 ~ /:/ ? "" : $2 == "s" ? ":443" : ":80")}'
  printf '%s\n' "${PIP_INDEX_URL:-https://pypi.org/simple}" | sed -nE 's|^http(s?)://([^@/]*@)?([^/]+).*|\3 \1|p' |
    awk '{print $1 ($1 ~ /:/ ? "" : $2 == "s" ? ":443" : ":80")}'
  echo files.pythonhosted.org:443
}
tree() {
  local disk=/cache/way-in.$$ pid relay name port address number=0 rc=0 way=() hosts=()
  trap 'rm -rf --one-file-system "$disk"' EXIT
  mkdir -p "$disk"/{libvirt,tmp} /var/lib/libvirt
  mount --bind "$disk/libvirt" /var/lib/libvirt # disks lie on a disk, not in memory
  mount --bind "$disk/tmp" /tmp
  chmod 1777 /tmp
  mount --bind /src "$tools/src"
  mount -t proc proc "$tools/proc"
  while IFS=: read -r name port; do
    address=
    for _ in 1 2 3 4 5; do address=$(getent ahostsv4 "$name" | awk 'NR == 1 {print $1}') || sleep 1; [ -z "$address" ] || break; done
    [ -n "$address" ] || fail "nobody knows the registry $name"
    number=$((number + 1))
    way+=("198.51.100.$number:$port=$address:$port")
    hosts+=("198.51.100.$number $name")
  done < <(registries | sort -u)
  printf '%s\n' "${hosts[@]}" >/run/registries
  mkfifo /run/relayed
  unshare --net --mount bash "$here/run.sh" _host "$number" &
  pid=$!
  until [ -e /run/network ]; do kill -0 $pid 2>/dev/null || fail "no network"; sleep 0.1; done
  chroot "$tools" python3 -u "$here/relay.py" $pid "${way[@]}" >/run/relayed &
  relay=$!
  wait $pid || rc=$?
  kill $relay 2>/dev/null || true
  exit $rc
}

# ---- the host ---------------------------------------------------------------------------------------------------------------------------

network() { # network REGISTRIES
  local number
  mount -t sysfs sysfs /sys # of this namespace
  chroot "$tools" ip link set lo up
  for ((number = 1; number <= $1; number++)); do chroot "$tools" ip addr add "198.51.100.$number/32" dev lo; done
  chroot "$tools" ip link add forge type dummy 2>/dev/null || chroot "$tools" ip link add forge type bridge
  chroot "$tools" ip addr add "$forge_address/32" dev forge
  chroot "$tools" ip link set forge up
  { printf '127.0.0.1 localhost\n::1 localhost\n%s %s\n' "$forge_address" "$forge_host"; cat /run/registries; } >/etc/hosts
  touch /run/network
  read -r _ </run/relayed
}
start_forge() {
  local folder=/srv/gitea gitea="$RIG_GITEA/gitea --config /srv/gitea/app.ini"
  mkdir -p $folder
  cat >$folder/app.ini <<INI
WORK_PATH = $folder
RUN_USER = root
RUN_MODE = prod
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
[server]
HTTP_ADDR = $forge_address
ROOT_URL = $forge/
STATIC_ROOT_PATH = $RIG_GITEA
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = $folder/gitea.db
[security]
INSTALL_LOCK = true
[actions]
ENABLED = true
DEFAULT_ACTIONS_URL = self
[cron.update_checker]
ENABLED = false
INI
  $gitea migrate >$folder/log 2>&1
  $gitea admin user create --admin --username admin-of-all --password "$(cat /proc/sys/kernel/random/uuid)" --email a@forge.example \
    --must-change-password=false >>$folder/log 2>&1
  $gitea web >>$folder/log 2>&1 &
  until (exec 3<>/dev/tcp/$forge_host/3000) 2>/dev/null; do sleep 0.2; done
  # As README says it, for all of the instance; the other one is for the person at the forge's pages.
  token=$($gitea admin user generate-access-token --username admin-of-all --token-name vmrunner --scopes write:admin,read:repository --raw 2>>$folder/log | grep -xE '[0-9a-f]{40}')
  TOKEN=$($gitea admin user generate-access-token --username admin-of-all --token-name person --scopes all --raw 2>>$folder/log | grep -xE '[0-9a-f]{40}')
  export TOKEN FORGE=http://$forge_address:3000
}
at_forge() { chroot "$tools" python3 "$here/forge.py" "$@"; }

commands() { # commands FILE [HEADING] : the code of a page, or of one section of it
  awk -v heading="${2:-}" '/^## / {on = $0 == "## " heading} (on || heading == "") && /^    / {sub(/^ +/, ""); print}' "$1"
}
after() { # what systemd does by itself on a host
  if [ -x /usr/sbin/libvirtd ] && [ ! -e /run/libvirt/libvirt-sock ]; then
    # There is no polkit; who may in is the socket's group.
    printf '%s\n' 'auth_unix_rw = "none"' 'unix_sock_rw_perms = "0770"' 'unix_sock_group = "libvirt"' >>/etc/libvirt/libvirtd.conf
    LC_ALL=C virtlogd -d
    LC_ALL=C libvirtd -d
    until virsh -q -c qemu:///system version >/dev/null 2>&1; do sleep 0.2; done
  fi
}
perform() { # perform LINE : one command of a page, in this shell
  local printed
  say "# $1"
  case $1 in
    "vmrunner init"*)
      printf '%s\t%s\n' "The forge's address" $forge "Whose jobs" "" "An access token" "$token" "The recipe of" "" "Labels" "" \
        "Version of gitea-runner" /srv/gitea-runner | python3 "$here/answers.py" vmrunner init || fail "$1" ;;
    *"vmrunner systemd install"*)
      eval "$1" | tee /tmp/printed || fail "$1"
      printed=$(sed '1,/^Next, as root:$/d' /tmp/printed)
      while read -r line; do perform "$line"; done <<<"$printed" ;;
    *) eval "$1" || fail "$1" ;;
  esac
  after
}
# shellcheck disable=SC2329 # the pages' own lines call it
sudo() { env "$@"; } # root is who reads them
page() { # page FILE [HEADING]
  local line
  while IFS= read -r line <&3; do perform "$line"; done 3< <(commands "$@")
}
mark() { marks+=("\"$1\": $(($(date +%s) - began))"); say "$1: $(($(date +%s) - began)) s"; }
job() { # job NAME : a new repository's first job
  at_forge make "someone/$1" hello.txt=$here/hello.txt .gitea/workflows/first.yaml=$here/first.yaml
  at_forge wait "someone/$1" 900 || { tail -n 20 /run/stand-in-systemd/vmrunner.service.log; vmrunner history; fail "the job of $1"; }
}
member() { # a person who may look, without root
  useradd -m person
  perform "$(commands /src/docs/operations.md "As a service" | sed -n 's/ *#.*//; s/USER/person/; /^sudo adduser/p')"
  runuser -u person -- vmrunner status >/tmp/seen || fail "status, as a member of the group"
  grep -q "^debian-12: " /tmp/seen || fail "status shows no pool: $(cat /tmp/seen)"
  runuser -u person -- vmrunner history | grep -q someone || fail "history, as a member of the group"
}
leftovers() {
  find / -xdev \( -path /src -o -path /cache -o -path /tmp -o -path /proc -o -path /run/stand-in-systemd -o -path /run/credentials -o -path /root/vmrunner \
    -o -path /root/.cache \) -prune -o -name '*vmrunner*' ! -name vmrunner-rig -print
  find /var/lib/libvirt /var/log/libvirt /etc/libvirt -name '*vmr*' -print
  getent passwd vmrunner || true
  getent group vmrunner || true
  virsh -q -c qemu:///system net-list --all --name | grep vmr- || true
  virsh -q -c qemu:///system pool-list --all --name | grep vmr- || true
  nft list tables | grep vmr- || true
}

host() {
  network "$1"
  export DEBIAN_FRONTEND=noninteractive HOME=/root
  echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/90yes
  rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap
  start_forge
  install -m 755 /src/tests/runner/gitea-runner /srv/gitea-runner
  at_forge make actions/checkout action.yml=$here/checkout/action.yml index.js=$here/checkout/index.js
  at_forge tag actions/checkout v4
  git config --global --add safe.directory '*'
  git config --global "url./src.insteadOf" "$(sed -nE 's/^ *git clone (\S+)$/\1/p' /src/README.md)"
  install -m 755 $here/systemctl.py /usr/local/sbin/systemctl
  say "on $(sed -n 's/^PRETTY_NAME=//p' /etc/os-release)"
  cd /root
  marks=()
  began=$(date +%s)
  page /src/README.md "On your own Forgejo, in five steps"
  mark serving
  job first
  mark first_job
  member
  say "a member of the group may look"

  git -C /root/vmrunner -c user.name=x -c user.email=x@forge.example commit -q --allow-empty -m "A newer version"
  version=$(vmrunner --version)
  page /src/docs/howto/upgrade.md
  [ "$(vmrunner --version)" != "$version" ] || fail "still $version"
  say "upgraded from $version to $(vmrunner --version)"
  job second
  mark upgraded
  page /src/docs/howto/remove.md
  cd /
  [ "$(leftovers)" = "" ] || fail "what is left: $(leftovers)"
  mark removed
  printf '{"way-in": "%s", "kvm": %s, %s}\n' "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$([ -e /dev/kvm ] && echo true || echo false)" \
    "$(printf ', %s' "${marks[@]}" | cut -c3-)"
}

main() {
  case ${1:-} in
    _tree) tree ;;
    _host) host "$2" ;;
    _commands) shift; commands "$@" ;;
    *)
      cd "$(dirname "${BASH_SOURCE[0]}")/../.."
      [ $# -gt 0 ] || set -- trixie
      # A host has systemd, also where it is not the first process.
      for suite; do rig/rig bare "$suite" git make systemd procps -- bash /src/tests/way_in/run.sh _tree; done ;;
  esac
}

main "$@"
exit # whatever has become of this file meanwhile
