"""Which machine somebody means by what they have typed."""

from __future__ import annotations

from collections.abc import Iterable

from vmrunner.errors import WrongCommand
from vmrunner.model.machine import Machine, may_mean
from vmrunner.text import presentable, some


def find(machines: Iterable[Machine], text: str) -> Machine:
    """The machine of this name, or the only one whose name begins or ends so, that is alive.

    Raises WrongCommand.
    """
    alive = {str(each.id): each for each in machines if each.alive}
    if text in alive:
        return alive[text]
    names = [name for name in alive if may_mean(text, name)]
    if not names:
        raise WrongCommand(
            f"There is no machine {presentable(text)} on this host.",
            "`vmrunner status` shows those that there are, `vmrunner history` those that were.",
        )
    if len(names) > 1:
        raise WrongCommand(
            f"{presentable(text)} may be any of {len(names)} machines.",
            f"Say more of its name: {some(names)}.",
        )
    return alive[names[0]]
