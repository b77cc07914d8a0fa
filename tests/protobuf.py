"""As much of Protocol Buffers' wire format as tests need to look into what the real runner says."""

from __future__ import annotations


def fields(raw: bytes) -> list[tuple[int, int | bytes]]:
    """A message's fields by their numbers: whole numbers, or the bytes of a text or a message."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(raw):
        tag, at = _number(raw, at)
        value, at = _number(raw, at)
        if tag & 7 == 2:
            found.append((tag >> 3, raw[at : at + value]))
            at += value
        else:
            assert tag & 7 == 0, "the runner's service has no other fields"
            found.append((tag >> 3, value))
    return found


def _number(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 0x80:
            return value, at
