"""Why the cache does not do what a machine asks for."""

from __future__ import annotations

from enum import Enum, auto


class Why(Enum):
    """What programs decide by; the sentence beside it is for people."""

    WRONG = auto()  # the request itself
    MAY_NOT = auto()  # this job, whatever it asks for
    UNKNOWN = auto()  # there is no such upload or archive, or it is another machine's
    TAKEN = auto()  # the entry is there, or on its way
    TOO_LARGE = auto()
    TOO_MANY = auto()
    NO_ROOM = auto()  # on the host's disk


class Refused(Exception):
    """A machine's request is refused; its job goes on without the cache."""

    def __init__(self, why: Why, sentence: str) -> None:
        super().__init__(sentence)
        self.why, self.sentence = why, sentence
