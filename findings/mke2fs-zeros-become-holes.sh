#!/bin/bash
# mke2fs 1.47.0 with `-d`: a file of zeros in the tree that the file system is filled from.
#
# Guessed: a file that takes its blocks in the tree takes them in the image, too; only holes stay holes.
# Seen:    blocks of zeros are not written: the file's size is right, but it has no block for them. A swap file that a build has made with
#          `dd if=/dev/zero` and mkswap keeps its first page and is a hole otherwise, and swapon(8) takes no file with holes. So it is with
#          whatever was filled with zeros to set room aside. Nothing says so, and the file in the tree is as it was.
#
# Needs Debian 12 (apt-get, dpkg-deb). Unpacks Debian's e2fsprogs and util-linux into a temporary folder; mounts nothing, needs no root.
# Ends with 0 while that is so. Seen with 1.47.0 of Debian 12, and by hand with 1.47.2 of Debian 13, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download 'e2fsprogs=1.47.0-*' 'libext2fs2=1.47.0-*' libcom-err2 libss2 libblkid1 libuuid1 util-linux 2>/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu PATH=$work/root/usr/sbin:$work/root/sbin:$PATH
mkdir tree
dd if=/dev/zero of=tree/swapfile bs=1M count=4 status=none
chmod 600 tree/swapfile
mkswap -q tree/swapfile
head -c 4M /dev/urandom >tree/random
mke2fs -q -t ext4 -b 4096 -d tree disk 32M 2>&1
blocks() { debugfs -R "stat /$1" disk 2>/dev/null | sed -n 's/.*Blockcount: //p'; }
for file in random swapfile; do
  echo "$file: $(stat -c '%s bytes, %b blocks of 512 bytes' tree/$file) in the tree, $(blocks $file) blocks in the image"
done
[ "$(stat -c %b tree/swapfile)" -ge 8192 ]
[ "$(blocks random)" -ge 8192 ]
[ "$(blocks swapfile)" -eq 8 ]
debugfs -R "dump /swapfile back" disk 2>/dev/null
cmp tree/swapfile back
echo "still so: the swap file is there, byte for byte, but for one page it is a hole"
