"""Which version a forge is, asked once for each connection to it."""

from __future__ import annotations

import time
from collections.abc import Callable

from pydantic import TypeAdapter

from vmrunner.errors import ForgeDenied, ForgeError, ForgeNotFound
from vmrunner.forge.http import Http, parse
from vmrunner.support import Version, numbers
from vmrunner.waiting import Deadline

# A proxy in between keeps its connections while the forge behind it is upgraded.
_LONGEST = 600.0
_SHAPE = TypeAdapter(dict[str, str])


class ForgeVersion:
    """The version as numbers, () where the forge tells none.

    A forge that was away, or was upgraded, has closed its connections: whenever there is a new one
    it is asked again, and every ten minutes.
    """

    def __init__(self, http: Http, clock: Callable[[], float] = time.monotonic) -> None:
        self._http, self._clock = http, clock
        self._known: Version = ()
        self._asked: tuple[int, Deadline] | None = None  # with how many connections, and until when

    def __call__(self) -> Version:
        """The version; asks the forge only where it may have changed.

        Nothing fails for it: who asks has another answer of the forge in hand, or gets the error
        with the next one.
        """
        asked = self._asked
        if asked and asked[0] == self._http.connections and not asked[1].is_over:
            return self._known
        doing = "its version"
        try:
            answer, _ = self._http.call("GET", "/api/v1/version", doing)
            self._known = numbers(parse(_SHAPE, answer, doing).get("version", ""))
        except (ForgeDenied, ForgeNotFound):
            self._known = ()
        except ForgeError:
            self._known, self._asked = (), None
            return ()
        self._asked = self._http.connections, Deadline(_LONGEST, self._clock)
        return self._known

    @property
    def last(self) -> Version:
        """What was told last, without a question."""
        return self._known
