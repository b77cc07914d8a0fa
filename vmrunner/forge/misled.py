"""Why a request did not get to the forge, in one sentence: redirects to elsewhere, TLS, proxies."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from urllib.request import proxy_bypass

import httpx

from vmrunner.errors import ForgeUnreachable
from vmrunner.text import presentable

_ANOTHER_NAME = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_ANOTHER_TIME = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
# What OpenSSL says, by its version, where the other side answers without TLS.
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
_MOVED = {301, 302, 307, 308}


def next_url(answer: httpx.Response, home: str) -> httpx.URL | None:
    """Where the forge at `home` has what was asked for, by its redirect; None where the answer is
    no redirect, or leads out of the forge's API: nothing may be sent there.

    That is what forges do for owners and repositories that were renamed.
    """
    if answer.status_code not in _MOVED or not (target := _target(answer)):
        return None
    forge = httpx.URL(home)
    same = (forge.scheme, forge.host, forge.port) == (target.scheme, target.host, target.port)
    below = target.path.startswith(f"{forge.path.rstrip('/')}/api/")
    return target if same and below and not target.userinfo and "/.." not in target.path else None


def elsewhere(answer: httpx.Response, home: str, path: str, doing: str) -> ForgeUnreachable:
    """The error of a redirect that is not followed. Its hint is the right forge.url, where the
    redirect tells it.
    """
    target = _target(answer) or answer.url
    plain = str(target.copy_with(query=None, fragment=None, userinfo=b""))
    shown, there = presentable(plain), plain.rstrip("/").removesuffix(path)
    moved = there != plain.rstrip("/") and there != home
    return ForgeUnreachable(
        f"The forge at {home} sends {doing} on to {shown}.",
        f'Set forge.url to "{presentable(there)}", if that is yours.'
        if moved
        else "Is forge.url the forge's own, with no login page in front of it?",
    )


def unreachable(error: httpx.TransportError | httpx.InvalidURL, home: str) -> ForgeUnreachable:
    """The error of a request that had no answer."""
    tls = [each for each in _causes(error) if isinstance(each, ssl.SSLError)]
    if tls:
        return _no_tls(tls[0], home)
    return ForgeUnreachable(
        f"The forge at {home} can't be reached: {str(error).removesuffix('.')}.",
        f"Check forge.url, and that the forge runs.{around_proxy(home)}",
    )


def around_proxy(home: str) -> str:
    """That a proxy of the environment is not used, where there is one for this URL; else nothing.

    It would see the token, and machines reach the forge without it, or not at all.
    """
    url = httpx.URL(home)
    names = (f"{url.scheme}_proxy", "all_proxy")
    found = [name for each in names for name in (each, each.upper()) if os.environ.get(name)]
    if not found or proxy_bypass(url.host):
        return ""
    return f" It is asked without the proxy in {found[0]}, as machines reach it without one."


def _target(answer: httpx.Response) -> httpx.URL | None:
    return answer.next_request.url if answer.next_request else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_tls(error: ssl.SSLError, home: str) -> ForgeUnreachable:
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    if code in _ANOTHER_NAME:
        return ForgeUnreachable(
            f"The certificate of the forge at {home} is for another name.",
            "Set forge.url to a name that the certificate has.",
        )
    if code in _ANOTHER_TIME:
        return ForgeUnreachable(
            f"The certificate of the forge at {home} has expired, or is not valid yet.",
            "Renew it at the forge; or is this host's clock wrong?",
        )
    if error.reason in _NO_TLS:
        return ForgeUnreachable(
            f"The forge at {home} answers without TLS.",
            "Is its port right, or does forge.url have to begin with http://?",
        )
    return ForgeUnreachable(
        f"The TLS connection to {home} failed: {error}.",
        "For a private CA, name its certificate as forge.ca_file.",
    )
