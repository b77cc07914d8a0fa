"""vmrunner: a fresh, hypervisor-isolated virtual machine for every CI job."""

__version__ = "0.1.0"
