#!/bin/bash
# A runner for one job in a copy of a Debian tree that is thrown away afterwards, without a machine: below it are this host's kernel and network.
# usage: plain.sh TREE PLACE RUNNER FILES…    TREE is read only, PLACE an empty folder, the files go into the runner's folder
set -euo pipefail
umask 022
tree=$1 place=$2 runner=$3
shift 3
mount -t tmpfs tmpfs "$place"
mkdir "$place"/{upper,work,root}
root=$place/root
mount -t overlay -o "lowerdir=$tree,upperdir=$place/upper,workdir=$place/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev,noexec tmpfs "$root/run" # as systemd does it on every Debian
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
hostname plain
echo plain >"$root/etc/hostname"
{ printf '127.0.0.1 localhost\n127.0.1.1 plain\n::1 localhost\n'; grep -w forge.example /etc/hosts; } >"$root/etc/hosts"
mkdir -p "$root/var/lib/runner"
cp "$runner" "$root/usr/local/bin/gitea-runner"
cp "$@" "$root/var/lib/runner/"
cd "$root"
ulimit -Sn 1024 # as a login has it; the hard limit is this host's
# SIGHUP: under nohup it is ignored, and no job of a machine sees that.
exec chroot . /usr/bin/env -i --default-signal=HUP --chdir=/var/lib/runner HOME=/root USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8 \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin gitea-runner daemon --once --config config.yaml
