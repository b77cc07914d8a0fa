"""The page's views: each reads what the last pass saw, the history or the images, and renders one
template.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from vmrunner import __version__, render
from vmrunner.log import Log
from vmrunner.manager.record import Record
from vmrunner.model.job import VERDICTS
from vmrunner.model.machine import Ending, Phase
from vmrunner.page import images, words
from vmrunner.page.chart import timeline
from vmrunner.page.past import Past, Wanted
from vmrunner.page.said import Logs
from vmrunner.page.seen import Reader, Seen
from vmrunner.page.summary import Plots, Summary
from vmrunner.page.sums import Span
from vmrunner.page.there import Order, Sought
from vmrunner.text import size

_MOST = 50  # machines or waiting jobs on one page
_FEW = 20  # waiting jobs beside the pools
_LONGEST = 200  # characters of what is asked for
_VIEWS = (
    ("/", "Now"),
    ("/queue", "Queue"),
    ("/machines", "Machines"),
    ("/history", "History"),
    ("/plots", "Plots"),
    ("/images", "Images"),
)
_SHOWN_PHASES = [each.value for each in Phase if each not in {Phase.ABSENT, Phase.DESTROYED}]
_FILES = {
    "/style.css": ("page/style.css", "text/css"),
    "/page.js": ("page/page.js", "text/javascript"),
    "/icon.svg": ("page/icon.svg", "image/svg+xml"),
    "/favicon.ico": ("page/icon.svg", "image/svg+xml"),  # what a browser asks for beside a text
}
_WORDS = {
    "duration": words.duration,
    "size": size,
    "moment": words.moment,
    "machine_time": words.machine_time,
    "time_of_day": words.time_of_day,
    "link": words.link,
}


@dataclass(frozen=True)
class Host:
    """What the page is about."""

    manager: str
    images: Path
    most: Mapping[str, int]  # each pool's max


def draw(plots: Plots) -> str:
    """The plots of a span, as part of a page."""
    return render.html("page/charts.html", plots=plots, **_WORDS)


class Views:
    """What each address shows. They run in threads of their own, so they may wait for a disk."""

    def __init__(
        self,
        host: Host,
        reader: Reader,
        past: Past,
        summary: Summary,
        log: Log,
        clock: Callable[[], float] = time.time,
        logs: Logs | None = None,
    ) -> None:
        """Without `logs` no machine's log is shown."""
        self._host, self._reader, self._past, self._summary = host, reader, past, summary
        self._logs = logs
        self._log, self._clock = log, clock

    def _page(
        self, request: Request, template: str, title: str, status: int = 200, **values: object
    ) -> Response:
        return HTMLResponse(
            render.html(
                f"page/{template}.html",
                title=title,
                views=_VIEWS,
                here=request.url.path,
                manager=self._host.manager,
                version=__version__,
                now=self._clock(),
                **values,
                **_WORDS,
            ),
            status,
        )

    def _live(
        self, request: Request, template: str, title: str, seen: Seen, **values: Any
    ) -> Response:
        """A page of what the last pass saw, which says how old that is."""
        stale = seen.is_stale(self._clock())
        return self._page(request, template, title, seen=seen, stale=stale, **values)

    def now(self, request: Request) -> Response:
        """Pools, and the beginning of the queue."""
        seen = self._reader.seen()
        return self._live(request, "now", "Now", seen, few=_FEW)

    def queue(self, request: Request) -> Response:
        """Jobs that wait, and why."""
        seen = self._reader.seen()
        waiting = seen.status["waiting"] if seen.status else []
        place, shown = _slice(request, waiting)
        return self._live(
            request,
            "queue",
            "Queue",
            seen,
            waiting=shown,
            **_around(request, place, len(waiting)),
        )

    def machines(self, request: Request) -> Response:
        """Those that are there."""
        seen, asked = self._reader.seen(), _asked(request, "order")
        sought = Sought(
            _asked(request, "pool"),
            _asked(request, "phase"),
            _asked(request, "text"),
            Order(asked) if asked in set(Order) else Order.POOL,
        )
        pools = seen.status["pools"] if seen.status else []
        every = sought.among(pools)
        place, shown = _slice(request, every)
        return self._live(
            request,
            "machines",
            "Machines",
            seen,
            sought=sought,
            machines=shown,
            lent=seen.status["garm"] if seen.status and not sought else [],
            pools=sorted({*(each["name"] for each in pools), *filter(None, [sought.pool])}),
            phases=_SHOWN_PHASES,
            orders=list(Order),
            **_around(request, place, len(every)),
        )

    def machine(self, request: Request) -> Response:
        """One machine: its job, and the pieces of its life."""
        record = self._record(request)
        live = next(
            (
                machine
                for pool in (self._reader.seen().status or {"pools": []})["pools"]
                for machine in pool["machines"]
                if machine["name"] == record.machine
            ),
            None,
        )
        return self._page(
            request,
            "machine",
            record.machine,
            record=record,
            said=self._logs.last(record) if self._logs else None,
            live=live,
            pieces=timeline(_moments(record, self._clock())),
        )

    def log(self, request: Request) -> Response:
        """All lines about one machine."""
        if self._logs is None:
            raise HTTPException(404)
        text = self._logs.whole(self._record(request))
        if text is None:
            raise HTTPException(503)
        return PlainTextResponse(text.encode("utf-8", "replace"))

    def _record(self, request: Request) -> Record:
        name = str(request.path_params["name"])[:_LONGEST]
        if record := self._past.machine(name):
            return record
        raise HTTPException(404)

    def history(self, request: Request) -> Response:
        """Machines that have ended."""
        wanted = Wanted(
            text=_asked(request, "text"),
            pool=_asked(request, "pool"),
            ending=_asked(request, "ending"),
            verdict=_asked(request, "verdict"),
            failed=bool(_asked(request, "failed")),
            before=_cursor(_asked(request, "before")),
        )
        found = self._past.ended(wanted)
        return self._page(
            request,
            "history",
            "History",
            wanted=wanted,
            found=found,
            more=_with(request, before=f"{found.more[0]!r},{found.more[1]}") if found.more else "",
            pools=sorted({*self._host.most, *([wanted.pool] if wanted.pool else [])}),
            endings=[each.value for each in Ending],
            verdicts=sorted(VERDICTS),
        )

    def plots(self, request: Request) -> Response:
        """Over a day, a week or a quarter."""
        asked = _asked(request, "span")
        span = Span(asked) if asked in set(Span) else Span.DAY
        return self._page(
            request,
            "plots",
            "Plots",
            spans=list(Span),
            span=span,
            drawn=self._summary.drawn(span),
        )

    def images(self, request: Request) -> Response:
        """Images with their versions."""
        return self._page(request, "images", "Images", images=images.look(self._host.images))

    def file(self, request: Request) -> Response:
        """What a page is shown with."""
        name, kind = _FILES[request.url.path]
        return Response(
            render.source(name), media_type=kind, headers={"cache-control": "max-age=600"}
        )

    def wrong(self, request: Request, error: Exception) -> Response:
        """What can't be shown."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 500:
            self._log.warning("the page could not show this", path=request.url.path, why=str(error))
        said = {
            404: "There is nothing here: a machine's history may have been forgotten.",
            503: "Others are reading logs just now; ask again in a moment.",
            500: "This can't be read just now; the log of `vmrunner serve` says why.",
        }.get(status, "This can't be shown.")
        return self._page(
            request, "wrong", "Not here" if status == 404 else "Sorry", status, said=said
        )


def application(views: Views) -> Starlette:
    """All addresses; who may look is the guard's to say."""
    return Starlette(
        routes=[
            Route("/", views.now),
            Route("/queue", views.queue),
            Route("/machines", views.machines),
            Route("/machines/{name}", views.machine),
            Route("/machines/{name}/log", views.log),
            Route("/history", views.history),
            Route("/plots", views.plots),
            Route("/images", views.images),
            *(Route(path, views.file) for path in _FILES),
        ],
        exception_handlers={HTTPException: views.wrong, Exception: views.wrong},
    )


def _asked(request: Request, name: str) -> str:
    return request.query_params.get(name, "")[:_LONGEST]


def _slice(request: Request, every: list[Any]) -> tuple[int, list[Any]]:
    """The part that is asked for by its number, from 1; the last one where there are fewer."""
    asked = _asked(request, "page")
    last = max(1, -(-len(every) // _MOST))
    place = min(last, max(1, int(asked))) if asked.isdecimal() and asked.isascii() else 1
    return place, every[(place - 1) * _MOST : place * _MOST]


def _around(request: Request, place: int, count: int) -> dict[str, Any]:
    """Where the parts before and behind are."""
    return {
        "place": place,
        "count": count,
        "first": (place - 1) * _MOST,
        "before": _with(request, page=place - 1) if place > 1 else "",
        "behind": _with(request, page=place + 1) if place * _MOST < count else "",
    }


def _with(request: Request, **changed: object) -> str:
    """This address with something else asked for."""
    asked = {key: value[:_LONGEST] for key, value in request.query_params.items() if value}
    return f"?{urlencode(asked | {key: str(value) for key, value in changed.items()})}"


def _cursor(asked: str) -> tuple[float, str] | None:
    at, comma, name = asked.partition(",")
    try:
        return (float(at), name) if comma else None
    except ValueError:
        return None


def _moments(record: Record, now: float) -> list[tuple[str, float]]:
    """What a machine's life is made of: what it did from each of these moments on."""
    queued = record.queued if record.attempt < 2 else 0.0
    first = ("waiting in the queue", queued) if 0 < queued < record.created else ("", 0.0)
    bound = record.bound if record.bound > record.created else 0.0
    return [
        first,
        ("being made", record.created),
        ("starting", record.started),
        *((("warm", record.ready), ("bound", bound)) if bound else ()),
        ("up, runner starts", record.up if not bound else 0.0),
        ("runner at work", record.runner or record.running),
        ("ending", record.exit),
        ("", record.destroyed or now),
    ]
