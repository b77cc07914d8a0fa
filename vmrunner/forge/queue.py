"""A long queue of waiting jobs, read a few pages at a time. Pure but for the call that reads one.

Gitea's list has no order that can be relied on (on sqlite the oldest come first), and changes
while it is read. So nothing here rests on an order: the pages are read in turn, again and again,
and what was read stays known until two whole rounds have not shown it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from vmrunner.forge.trace import Place
from vmrunner.model.job import Job, Want

Row = tuple[Place, Job]
_AT_ONCE = 4  # pages in one look, where jobs that are wanted are known already
_SEARCH = 20  # where none is
_MOST = 20_000  # jobs that are remembered


class LongQueue:
    """The jobs of one scope that wait, as far as they were read."""

    def __init__(self, read: Callable[[int], tuple[Sequence[Row], int]], page: int) -> None:
        """`read` gives a page (the first is 1), and how many jobs wait in all; `page` is how many
        rows it has.
        """
        self._read, self._page = read, page
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._round, self._seen = 0, dict[int, int]()  # by job: the round that showed it last
        self._next = 1
        self._got: set[int] = set()  # pages of this look
        self._fresh: set[int] = set()  # jobs of this look
        self.total = 0

    @property
    def rows(self) -> list[Row]:
        """All that are known."""
        return list(self._rows.values())

    @property
    def old(self) -> set[int]:
        """Those that this look has not shown: they may be gone."""
        return self._rows.keys() - self._fresh

    @property
    def unread(self) -> int:
        """How many wait that are not known, at least."""
        return max(0, self.total - len(self._rows))

    def look(self, wants: Sequence[Want]) -> bool:
        """Read the last page, which has the newest where there is an order, the one whose turn it
        is, and more as long as jobs are wanted that are not known. Whether that is still so.
        """
        before, self._got, self._fresh = self.total, set(), set()
        self._get(self._last)
        self._get(self._last)  # there may be more of them by now
        # What went came before its place, perhaps: the others have moved towards the beginning.
        gone = max(0, before - self.total)
        self._next = max(1, self._next - -(-gone // self._page))
        while len(self._got) < self._last and (len(self._got) < 2 or self._goes_on(wants)):
            self._get(self._turn())
        if len(self._got) >= self._last:
            for job in self.old:
                self.forget(job)
        return self._is_behind() and self._lacks(wants)

    def forget(self, job: int) -> None:
        """This one does not wait any more."""
        self._rows.pop(job, None)
        self._seen.pop(job, None)

    @property
    def _last(self) -> int:
        return max(1, -(-self.total // self._page))

    def _get(self, page: int) -> None:
        if page in self._got:
            return
        rows, self.total = self._read(page)
        self._got.add(page)
        self._next += page == self._next
        for row in rows:
            number = row[0].job
            self._rows[number], self._seen[number] = row, self._round
            self._rows.move_to_end(number)
            self._fresh.add(number)
        while len(self._rows) > _MOST:
            self.forget(next(iter(self._rows)))

    def _turn(self) -> int:
        """The next page of the round that this look has not read."""
        while True:
            if self._next > self._last:
                self._next = 1
                self._end_round()
            if self._next not in self._got:
                return self._next
            self._next += 1

    def _end_round(self) -> None:
        """A job may slip past the round, so it takes two to say that one is gone."""
        for number in [each for each, seen in self._seen.items() if seen < self._round - 1]:
            self.forget(number)
        self._round += 1

    def _is_behind(self) -> bool:
        """Whether there is more to be found than what came a moment ago."""
        return self.unread >= (self._page if self._round else 1)

    def _goes_on(self, wants: Sequence[Want]) -> bool:
        if not self._is_behind() or not self._lacks(wants):
            return False
        known = any(_fitting(want, self._rows.values()) for want in wants)
        return len(self._got) < (_AT_ONCE if known else _SEARCH)

    def _lacks(self, wants: Sequence[Want]) -> bool:
        return any(_fitting(want, self._rows.values()) < want.count for want in wants)


def _fitting(want: Want, rows: Iterable[Row]) -> int:
    """How many of these jobs are wanted: jobs are many, and what they ask for is not."""
    alike = Counter(job.labels for _, job in rows)
    examples = {job.labels: job for _, job in rows}
    return sum(number for labels, number in alike.items() if want.serves(examples[labels]))
