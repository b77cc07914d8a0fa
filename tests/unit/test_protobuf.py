"""The wire format, by its documentation's examples."""

from tests.protobuf import fields


def test_numbers_and_texts() -> None:
    assert fields(b"\x08\x96\x01\x12\x07testing") == [(1, 150), (2, b"testing")]
    assert fields(b"") == []
    assert fields(b"\x1a\x03\x08\x96\x01") == [(3, b"\x08\x96\x01")]
