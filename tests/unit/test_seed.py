"""The seed: a real NoCloud ISO, read back, with a script that a real shell accepts."""

import io
import subprocess
from datetime import timedelta

import pycdlib
import pytest

from vmrunner.forge import Credentials, Job, JobState
from vmrunner.model import MachineId
from vmrunner.seed import exec_script, iso, job_script

MACHINE = MachineId("ci-1", "00c0ffee")


def script(kind: str, label: str = "debian-12") -> str:
    return job_script(
        kind=kind,
        url="https://forge.example",
        ca="",
        machine=MACHINE,
        credentials=Credentials(5, "the-uuid", "t0ken"),
        labels=[label],
        job=Job(1, "build", (label,), JobState.WAITING, "1.0", handle="h-1"),
        job_timeout=timedelta(minutes=1),
    )


def test_iso_is_a_nocloud_seed() -> None:
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(iso(MACHINE, "#!/bin/sh\n")))
    assert image.pvd.volume_identifier.decode().strip() == "cidata"
    for name, content in (("meta-data", str(MACHINE)), ("user-data", "#!/bin/sh"), ("network-config", MACHINE.mac)):
        out = io.BytesIO()
        image.get_file_from_iso_fp(out, rr_path=f"/{name}")
        assert content in out.getvalue().decode()
    image.close()


@pytest.mark.parametrize(
    "text", [script("forgejo"), script("gitea"), script("forgejo", "it's"), exec_script(["echo", "a'b"], timedelta(1))]
)
def test_scripts_are_valid_shell(text: str) -> None:
    assert text.startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n"], input=text.encode(), check=True)


def test_forgejo_gets_its_handle_and_a_verbatim_token() -> None:
    text = script("forgejo")
    assert "--handle h-1" in text
    assert "printf %s t0ken >token" in text


def test_credentials_do_not_show_the_token() -> None:
    assert "t0ken" not in repr(Credentials(5, "u", "t0ken"))
