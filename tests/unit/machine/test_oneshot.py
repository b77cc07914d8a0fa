"""The end of a command's output, however it is cut into chunks."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from vmrunner.machine.oneshot import _Until

WORD = b"abab-end"


@given(
    st.binary(max_size=20).map(
        lambda raw: raw.translate(bytes(b"ab-endx\n"[each % 8] for each in range(256)))
    ),
    st.data(),
)
def test_what_comes_before_the_word_is_passed_on_whole(text: bytes, data: st.DataObject) -> None:
    assume((text + WORD).find(WORD) == len(text))
    sent, got = text + WORD + b"of nobody", bytearray()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=6)))
    chunks = [sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    until = _Until(WORD, got.extend)
    found = False
    for chunk in chunks:
        found = until(chunk)
        if found:
            break
    assert (found, bytes(got)) == (True, text)


def test_output_that_just_stops_is_passed_on_whole() -> None:
    got = bytearray()
    until = _Until(WORD, got.extend)
    assert not until(b"first\nabab-en")
    assert bytes(got) == b"first\n", "the rest may be the word's beginning"
    until.finish()
    assert bytes(got) == b"first\nabab-en"
