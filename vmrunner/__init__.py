"""vmrunner: a fresh, hypervisor-isolated virtual machine for every CI job."""

try:
    from vmrunner._version import __version__ as __version__
except ModuleNotFoundError:  # a checkout; what is built from it has the version of git's tags
    __version__ = "0+checkout"
