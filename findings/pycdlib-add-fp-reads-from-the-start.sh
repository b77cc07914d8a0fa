#!/bin/bash
# pycdlib 1.22.0: add_fp with a file object that stands in its middle.
#
# Guessed: it reads from where the file stands, as whatever takes a file object and a length does in Python (shutil.copyfileobj, tarfile.addfile):
#          a program that has read a header, or packs two parts of one file, passes the file and the length of what follows.
# Seen:    it seeks to the start, and takes the length from there: the header is in the image, and the end is missing; two parts of one
#          file become twice its first part. Nothing is raised. A length that goes beyond the end is filled with zeros, as silently.
#
# Needs python3 with venv. Installs pycdlib from PyPI into a temporary folder.
# Ends with 0 while that is so. Seen with 1.22.0 on Debian 12, November 2026.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q pycdlib==1.22.0
cat >pack.py <<'PY'
import io
import tarfile

import pycdlib


def stands_after_its_first_line():
    packed = io.BytesIO(b"#header\nbody of the file\n")
    packed.readline()
    return packed, len(b"body of the file\n")


archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as tar:
    source, length = stands_after_its_first_line()
    member = tarfile.TarInfo("a")
    member.size = length
    tar.addfile(member, source)
archive.seek(0)
with tarfile.open(fileobj=archive) as tar:
    print("tarfile has", tar.extractfile("a").read())

image = pycdlib.PyCdlib()
image.new(rock_ridge="1.09")
source, length = stands_after_its_first_line()
image.add_fp(source, length, "/A.;1", rr_name="a")
image.add_fp(io.BytesIO(b"short"), 8, "/B.;1", rr_name="b")
written = io.BytesIO()
image.write_fp(written)
image.close()

read = pycdlib.PyCdlib()
read.open_fp(written)
for name in ("a", "b"):
    content = io.BytesIO()
    read.get_file_from_iso_fp(content, rr_path=f"/{name}")
    print("pycdlib has", content.getvalue())
PY
venv/bin/python pack.py | tee said
diff said - <<'SAID'
tarfile has b'body of the file\n'
pycdlib has b'#header\nbody of t'
pycdlib has b'short\x00\x00\x00'
SAID
echo "still so: where the file stands is not asked, and what is missing is zeros"
