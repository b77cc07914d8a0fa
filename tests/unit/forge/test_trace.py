"""What is remembered of Gitea's lists: which jobs may have been a runner's that is no more."""

from __future__ import annotations

from vmrunner.forge.trace import Place, Trace, by_run
from vmrunner.model.job import Job, JobState, Scope

INSTANCE, ONE = Scope.parse("instance"), Scope.parse("repository:o/r")


def place(
    job: int,
    run: int = 1,
    labels: tuple[str, ...] = ("x",),
    runner_id: int = 0,
    repository: str = "o/r",
) -> Place:
    return Place(repository, job, run, labels, runner_id)


def vanished(
    trace: Trace, *runners: int, scope: Scope = INSTANCE, labels: tuple[str, ...] = ("x", "y")
) -> list[int]:
    return [each.job for each in trace.vanished(scope, runners, [labels])]


def test_what_was_open_and_is_not_any_more_the_latest_first() -> None:
    trace = Trace()
    trace.listed(INSTANCE, [(place(number), JobState.WAITING) for number in (1, 2, 3)])
    trace.listed(INSTANCE, [(place(number), JobState.WAITING) for number in (2, 3)])
    assert vanished(trace) == [1]
    trace.listed(INSTANCE, [(place(3), JobState.RUNNING)])
    assert vanished(trace) == [2, 1]
    trace.ended(Job(2, "j", ("x",), JobState.DONE, "2.1", runner_id=7))
    assert vanished(trace) == [1]
    job = trace.of(7)
    assert job is not None
    assert (job.id, trace.of(8)) == (2, None)


def test_only_those_that_the_runner_may_have_had() -> None:
    trace = Trace()
    jobs = [
        place(1),
        place(2, labels=("x", "big")),
        place(3, repository="o/other"),
        place(4, runner_id=5),
        place(6, runner_id=9),
    ]
    trace.listed(INSTANCE, [(each, JobState.RUNNING) for each in jobs])
    trace.listed(INSTANCE, [])
    assert vanished(trace, 9) == [6, 3, 1], (
        "the one that was seen on it first; not another runner's, nor what needs other labels"
    )
    assert vanished(trace, 9, scope=ONE) == [6, 1]
    assert vanished(trace, 9, labels=()) == [6, 3, 2, 1], "its labels are not known any more"


def test_a_hint_that_waits_or_is_known_to_be_over_is_not_asked_for() -> None:
    trace = Trace()
    assert trace.hinted("o/r", 1) == Place("o/r", 1), "of that no list has told"
    trace.listed(
        INSTANCE, [(place(1, run=4), JobState.WAITING), (place(2, run=4), JobState.RUNNING)]
    )
    assert (trace.hinted("o/r", 1), trace.hinted("o/r", 2)) == (None, place(2, run=4))
    trace.forget(2)
    assert trace.hinted("o/r", 2) is None
    trace.listed(INSTANCE, [(place(2, run=4), JobState.RUNNING)])
    assert trace.hinted("o/r", 2) == place(2, run=4), "it was begun again"


def test_places_are_looked_at_by_their_runs() -> None:
    places = [
        place(1, run=1),
        place(2, run=2),
        place(3, run=1),
        place(4, run=0),
        place(5, run=0),
        place(1, run=1),
    ]
    assert [[each.job for each in group] for group in by_run(places)] == [[1, 3], [2], [4], [5]]


def test_a_run_is_as_large_as_it_was() -> None:
    trace = Trace()
    trace.listed(INSTANCE, [(place(number, run=4), JobState.WAITING) for number in range(5)])
    trace.listed(INSTANCE, [(place(4, run=4), JobState.WAITING)])
    assert trace.size(4) == 5


def test_it_does_not_grow_for_ever() -> None:
    trace = Trace()
    for first in range(0, 60_000, 5_000):
        trace.listed(
            INSTANCE,
            [
                (place(number, run=number), JobState.WAITING)
                for number in range(first, first + 5_000)
            ],
        )
        for number in range(first, first + 5_000, 10):
            trace.ended(Job(number, "j", (), JobState.DONE, "", runner_id=number + 1))
    assert len(vanished(trace)) <= 20_000
    assert (trace.size(1), trace.size(59_999)) == (0, 1)
    assert trace.of(1) is None
    assert trace.of(59_991) is not None
