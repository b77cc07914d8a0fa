#!/usr/bin/python3
"""A GARM provider as one writes it in an afternoon: a stock cloud image, cloud-init, virt-install.

What vmrunner is measured against (`make garm GARM=--compare`). Its "configuration" is the image.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
FOLDER, NETWORK = Path("/var/lib/libvirt/usual"), "usual"
USER_DATA = """#!/usr/bin/python3
import json, os, subprocess, urllib.request
home = os.environ["HOME"] = os.path.expanduser("~root")  # cloud-init sets none
tool = "/usr/local/bin/gitea-runner"
def ask(url, body=None):
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {head})
    return urllib.request.urlopen(request).read().decode()
def run(*words):
    subprocess.run(words, cwd=home, check=True)
ask("{callback}/status", {{"status": "installing", "message": "installing"}})
urllib.request.urlretrieve("http://{host}:3003/gitea-runner", tool)
run("chmod", "+x", tool)
run(tool, "register", "--ephemeral", "--no-interactive", "--instance", "{forge}",
    "--name", "{name}", "--token",
    ask("{metadata}/runner-registration-token/"), "--labels", "{labels}")
runner = json.load(open(f"{{home}}/.runner"))["id"]
ask("{callback}/status", {{"status": "idle", "message": "idle", "agent_id": runner}})
run(tool, "daemon", "--once")
"""
INSTALL = """virt-install --connect qemu:///system --virt-type qemu --name {name}
 --transient --import --memory 1024 --vcpus 2 --osinfo debian12 --graphics none --noautoconsole
 --network network={network},model=virtio --disk {disk},bus=virtio
 --disk {seed},format=raw,bus=virtio,readonly=on"""


def create(wanted: dict) -> dict:
    name, forge = wanted["name"], urlsplit(wanted["repo_url"])
    folder, disk, seed = FOLDER / name, FOLDER / f"{name}.qcow2", FOLDER / f"{name}.iso"
    folder.mkdir()
    bearer = f"Bearer {wanted['instance-token']}"
    script = USER_DATA.format(
        head={"Authorization": bearer, "Content-Type": "application/json"},
        callback=wanted["callback-url"],
        metadata=wanted["metadata-url"],
        host=forge.hostname,
        forge=f"{forge.scheme}://{forge.netloc}",
        labels=",".join(wanted["labels"]),
        name=name,
    )
    (folder / "user-data").write_text(script)
    (folder / "meta-data").write_text(f"instance-id: {name}\nlocal-hostname: {name}\n")
    base = os.environ["GARM_PROVIDER_CONFIG_FILE"]
    for line in (
        f"genisoimage -quiet -J -R -V cidata -o {seed} {folder}",
        f"qemu-img create -q -f qcow2 -F qcow2 -b {base} {disk} 10G",
        INSTALL.format(name=name, network=NETWORK, disk=disk, seed=seed),
    ):
        subprocess.run(line.split(), check=True, stdout=sys.stderr)
    return {"provider_id": name, "name": name, "status": "running", "os_type": "linux"}


name, said = os.environ.get("GARM_INSTANCE_ID", ""), None
match os.environ["GARM_COMMAND"]:
    case "CreateInstance":
        said = create(json.load(sys.stdin))
    case "DeleteInstance":
        subprocess.run(["virsh", "-q", "-c", "qemu:///system", "destroy", name], stdout=sys.stderr)
        for path in (FOLDER / f"{name}.qcow2", FOLDER / f"{name}.iso"):
            path.unlink(missing_ok=True)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    case "ListInstances":
        said = []
print(json.dumps(said))
