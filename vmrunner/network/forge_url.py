"""The forge's URL, in the one form that everything here and in machines goes by. Pure."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

_FORM = 'it is written like "https://forge.example" or "https://forge.example/git"'
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_PATH = re.compile(r"(/[A-Za-z0-9._~%-]+)*")


def parse(value: object) -> str:
    """The URL without what only looks different: letters' case, a dot at the name's end, a default
    port, a slash at the end; a name beyond ASCII in its ASCII form.

    Raises ValueError, which shows nothing of the URL: there may be a password in it.
    """
    if not isinstance(value, str) or not re.match(r"(?i)https?://[^/]", value):
        raise ValueError(_FORM)
    if re.search(r"[\s\\]", value) or not value.isprintable():
        raise ValueError("it has a blank, a backslash or an invisible character in it")
    if "?" in value or "#" in value:
        raise ValueError("nothing may follow the path: no ? and no #")
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError(_FORM) from None
    if "@" in parts.netloc:
        raise ValueError("it has a user or a password in it; the access token is in token_file")
    return f"{parts.scheme}://{_host(parts)}{_port(parts)}{_path(parts.path)}"


def port_of(url: str) -> int:
    """The port of a URL that `parse` has read."""
    parts = urlsplit(url)
    return parts.port or _DEFAULT_PORTS[parts.scheme]


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        return f"[{_six(host)}]"
    if parts.netloc.count(":") > 1:
        raise ValueError("an IPv6 address stands in brackets: https://[2001:db8::7]")
    name = _ascii(host).removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ip_address(name))
        except ValueError:
            raise ValueError("its host is neither a name nor a whole IPv4 address") from None
    if not _NAME.fullmatch(name):
        raise ValueError("its host is not a name that DNS could have")
    return name


def _six(host: str) -> IPv6Address:
    if "%" in host:
        raise ValueError("it names the zone of an IPv6 address, which means nothing to machines")
    try:
        return IPv6Address(host)
    except AddressValueError:
        raise ValueError("its host is not an IPv6 address") from None


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        name = host.encode("idna").decode("ascii")
        if name.encode("ascii").decode("idna") == host:
            return name
    except UnicodeError:
        pass
    # Two standards read some letters differently, such as the German sharp s.
    raise ValueError('its host has to be written in its ASCII form, with "xn--"')


def _port(parts: SplitResult) -> str:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("ports are 1 to 65535")
    return "" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}"


def _path(path: str) -> str:
    path = path.rstrip("/")
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("its path is not one that a forge could be below")
    if re.search(r"/api/v\d+(/|$)", path):
        raise ValueError("it is the address of the forge's API: leave out what begins with /api")
    return path
