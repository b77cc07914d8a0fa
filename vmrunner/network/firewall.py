"""Our nftables tables: one for the frames that machines may send (bridge), one for where their
packets may go (inet).

Rules are the same for all machines of a policy; a machine is an element of two sets. Whatever is
not in them is dropped, so that a machine without its elements, or one whose process died in
between, has no network rather than all of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, TypeVar

from vmrunner import files
from vmrunner.errors import HypervisorError, NameClash, NotPermitted
from vmrunner.model.machine import MachineId
from vmrunner.network import queries
from vmrunner.network.addresses import gateway, paired
from vmrunner.network.allowed import AllowedAddresses, Held
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.names import bridge_name, network_name
from vmrunner.network.policy import CLOSED, CLOSED6, Bounds, Policy, Reach
from vmrunner.render import text

_HINT = (
    "Install nftables, and run as root or with CAP_NET_ADMIN; `filter = false` in the table "
    "[network] does without."
)
_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"
_Network = TypeVar("_Network", IPv4Network, IPv6Network)
_FAMILIES = ("bridge", "inet")
_KEPT = 3600  # seconds that an address of an allowed name stays after its last answer or packet
_CACHED = 60  # … that the resolver knows an answer, which then fills no set
# … that a machine may believe an answer, at most: less than _KEPT, and enough of it is left when
# the answer was cached, or passes are minutes apart.
_BELIEVED = 1800
_MARK = "made by vmrunner"  # in the comment of both, see the template
_COUNTING = {"connections", "openings", "queries", "held", "lookups"}
_CHANGING = {"machines", "machines6", "forge", "forge6", "dropped", *_COUNTING, *queries.MAPS}
"""Sets whose elements come and go; beside them those of names, whose names begin with _NAMES."""
_HEARD, _TAKEN_OVER = ("to-", "to6-"), ("kept-", "kept6-")
_NAMES = _HEARD + _TAKEN_OVER


@dataclass(frozen=True)
class _Family:
    """What nft calls the things of one family of addresses."""

    word: str
    suffix: str  # of the names of its sets
    type: str
    closed: Sequence[IPv4Network] | Sequence[IPv6Network]


@dataclass
class _Listed:
    """What the kernel holds."""

    digest: str  # of everything but the elements that come and go
    # Elements of the bridge's set, as nft writes them.
    frames: dict[MachineId, str] = field(default_factory=dict)
    frames6: dict[MachineId, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)  # address -> chain
    forge: set[tuple[str, int]] = field(default_factory=set)
    names: dict[str, list[str]] = field(default_factory=dict)  # set -> addresses
    # Address -> what its machine has of its own for DNS, in words that are the same for each.
    lanes: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # interface, address or MAC -> packets
    # Set -> addresses or MACs whose connections and openings it counts.
    counted: dict[str, set[str]] = field(default_factory=dict)


class _NoTable(HypervisorError):
    """There is no such table."""


_KINDS = {"not permitted": NotPermitted, "No such file or directory": _NoTable}


class Firewall:
    """The tables of one manager on this host.

    Every call raises HypervisorError where nft refuses.
    """

    def __init__(
        self,
        manager: str,
        subnet: IPv4Network,
        policies: Sequence[Policy],
        bounds: Bounds,
        forge: ForgeAddresses,
        runtime_dir: Path,
        ipv6: IPv6Network | None = None,
    ) -> None:
        self._manager, self._policies, self._forge = manager, tuple(policies), forge
        self._subnet, self._ipv6, self._bounds = subnet, ipv6, bounds
        self._state = runtime_dir / "firewall.json"
        self._table = network_name(manager)
        self._names = tuple(
            dict.fromkeys(to.name for policy in policies for to in policy.allow if to.name)
        )
        self._allowed = AllowedAddresses(
            self._names, IPv4Address(gateway(subnet)), runtime_dir, ipv6=ipv6 is not None
        )

    @cached_property
    def _rules(self) -> str:
        """All of the table; who only looks does not wait for it."""
        families = [_Family("ip", "", "ipv4_addr", _merged(self._subnet, CLOSED))]
        families += (
            [_Family("ip6", "6", "ipv6_addr", _merged(self._ipv6, CLOSED6))] if self._ipv6 else []
        )
        rules = text(
            "nftables.j2",
            table=self._table,
            taps=MachineId(self._manager, "").tap,
            bridge=bridge_name(self._manager),
            gateway=gateway(self._subnet),
            families=families,
            ipv6=self._ipv6,
            names=self._names,
            policies=self._policies,
            bounds=self._bounds,
            held=queries.held(self._bounds),
            lookups=queries.LOOKUPS,
            kept=_KEPT,
        )
        # The gateway's are no machine's: what those of machines are compared with.
        return rules + self._lane(IPv4Address(gateway(self._subnet)))

    @property
    def dns_options(self) -> tuple[str, ...]:
        """For the network's dnsmasq: a name that leads to a private address is not answered, unless
        it is the forge's or allowed; what it answers for an allowed name it adds to the name's set.
        Loopback is no private address: a machine that asks itself harms nobody. What a cache knows
        fills no set, so it is short.
        """
        trusted = [host for host in (self._forge.host, *self._names) if host and ":" not in host]
        rebind = (f"rebind-domain-ok=/{'/'.join(trusted)}/",) if trusted else ()
        also = f",6#inet#{self._table}#to6-" if self._ipv6 else ""
        sets = (
            f"nftset=/{name}/4#inet#{self._table}#to-{name}{also and also + name}"
            for name in self._names
        )
        return (
            "cache-size=10000",
            f"max-cache-ttl={_CACHED}",
            f"max-ttl={_BELIEVED}",
            f"dns-forward-max={queries.places(self._subnet, self._bounds)}",
            "stop-dns-rebind",
            "rebind-localhost-ok",
            *rebind,
            *sets,
        )

    # ---- what a pass does ----

    def ensure(self) -> set[MachineId]:
        """Load the rules where they are missing, changed or outdated; returns the machines that are
        let through.
        """
        listed = self._listed()
        if listed is None or not self._is_as_made(listed):
            self._nft(self._rules + self._carried_over(listed))
            listed = self._listed()
            if listed is None:
                raise HypervisorError(
                    f"The nftables table {self._table} is gone right after it was made.",
                    "Does another program flush it?",
                )
            self._remember(listed)
        said = self._allowed.asked()
        self._nft(self._taken_over(listed, said))
        self._allowed.note(_joined(_by_name(listed.names), said))
        wanted = {(str(at.address), at.port) for at in self._forge()}
        if wanted:
            changes = {"add": wanted - listed.forge, "delete": listed.forge - wanted}
            self._nft(
                "".join(self._forge_elements(change, pairs) for change, pairs in changes.items())
            )
        return set(listed.frames)

    def _is_as_made(self, listed: _Listed) -> bool:
        try:
            made = json.loads(self._state.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return False
        return bool(made == self._made(listed))

    def _made(self, listed: _Listed) -> dict[str, str]:
        return {"rules": hashlib.sha256(self._rules.encode()).hexdigest(), "listed": listed.digest}

    def _remember(self, listed: _Listed) -> None:
        with suppress(OSError):  # the next pass loads them once more
            files.write_whole(self._state, json.dumps(self._made(listed)))

    def _carried_over(self, listed: _Listed | None) -> str:
        """What the sets hold now, for the transaction that makes them anew."""
        if listed is None:
            return self._kept(self._allowed.held())
        parts = [self._elements("bridge", "machines", "add", listed.frames.values())]
        # Of IPv6 not what was: the prefix may be another one.
        for machine, element in listed.frames.items():
            parts.append(self._frames6(machine, IPv4Address(element.rpartition(" ")[2])))
        for address, chain in listed.verdicts.items():
            if ":" not in address:
                parts.append(self._verdicts(IPv4Address(address), chain))
                parts.append(self._lane(IPv4Address(address)))
        parts.append(self._forge_elements("add", listed.forge))
        parts.append(self._kept(_by_name(listed.names)))
        return "".join(parts)

    def _kept(self, held: Held) -> str:
        """The addresses of allowed names, let through for as long as one is kept from now on."""
        parts = []
        for name in self._names:
            addresses = sorted(held.get(name, ()))
            for suffix in ("", "6") if self._ipv6 else ("",):
                its = [each for each in addresses if (":" in each) == bool(suffix)]
                # To add what is there would not make it stay longer.
                for change in ("add", "delete", "add"):
                    parts.append(self._elements("inet", f"kept{suffix}-{name}", change, its))
        return "".join(parts)

    def _taken_over(self, listed: _Listed, said: Held) -> str:
        """What the resolver says of allowed names is kept, and what it has put into their sets.

        That leaves those sets, so that the resolver can put it there again.
        """
        heard = {name: its for name, its in listed.names.items() if name.startswith(_HEARD)}
        emptied = (
            self._elements("inet", name, change, its)
            for name, its in heard.items()
            for change in ("add", "delete")
        )
        return self._kept(_joined(_by_name(heard), said)) + "".join(emptied)

    def _forge_elements(self, change: str, pairs: set[tuple[str, int]]) -> str:
        six = {pair for pair in pairs if ":" in pair[0]}
        return self._elements("inet", "forge", change, _pairs(pairs - six)) + (
            self._elements("inet", "forge6", change, _pairs(six)) if self._ipv6 else ""
        )

    def _paired(self, address: IPv4Address) -> IPv6Address | None:
        if address not in self._subnet:  # it was taken before the subnet was another one
            return None
        found = paired(IPv4Interface((address, self._subnet.prefixlen)), self._ipv6)
        return found.ip if found else None

    def _frames6(self, machine: MachineId, address: IPv4Address) -> str:
        six = self._paired(address)
        element = (
            [f'"{machine.tap}" . 0x{machine.mac.replace(":", "")} . {int(six):#x}'] if six else []
        )
        return self._elements("bridge", "machines6", "add", element)

    def _verdicts(self, address: IPv4Address, policy: str) -> str:
        goes = f"goto {self._chain(policy)}"
        six = self._paired(address)
        also = self._elements("inet", "machines6", "add", [f"{six} : {goes}"]) if six else ""
        return self._elements("inet", "machines", "add", [f"{address} : {goes}"]) + also

    def _lane(self, address: IPv4Address) -> str:
        return queries.rules(self._table, address, self._bounds)

    def _chain(self, policy: str) -> str:
        return policy if any(policy == each.name for each in self._policies) else Reach.NONE

    def admit(self, machine: MachineId, address: IPv4Address, policy: str) -> None:
        """Let a machine's packets through, as far as its policy goes; one whose policy is no more
        reaches the forge.
        """
        frames = self._elements(
            "bridge", "machines", "add", [f'"{machine.tap}" . {machine.mac} . {address}']
        )
        admitted = (
            self._uncounted(address)
            + frames
            + self._frames6(machine, address)
            + self._lane(address)
            + self._verdicts(address, policy)
        )
        try:
            self._nft(admitted)
        except HypervisorError:
            listed = self._listed()
            if listed is None or str(address) not in listed.verdicts:
                raise
            # The address is another machine's, which is gone: its process died before it could say
            # so.
            self._nft(self._gone(listed, address) + admitted)

    def _uncounted(self, address: IPv4Address) -> str:
        """Nothing is counted for this address: a last packet of the machine that had it before may
        have come when that one was forgotten. (With IPv6 it is counted by MAC, which never comes
        again.)
        """
        return "".join(
            self._elements("inet", name, change, [str(address)])
            for name in ([] if self._ipv6 else sorted({"dropped", *_COUNTING}))
            for change in ("add", "delete")
        )

    def forget(self, machine: MachineId) -> None:
        """Let nothing through any more for a machine that is gone."""
        listed = self._listed()
        if listed is None:
            return
        element = listed.frames.get(machine, "")
        address = element.rpartition(" ")[2]
        if any(
            each != machine and its.rpartition(" ")[2] == address
            for each, its in listed.frames.items()
        ):
            address = ""  # it has gone to another one
        gone = [("bridge", "machines", "delete", [element])] if element else []
        gone += (
            [("bridge", "machines6", "delete", [listed.frames6[machine]])]
            if machine in listed.frames6
            else []
        )
        gone += (
            [("bridge", "dropped", "delete", [f'"{machine.tap}"'])]
            if machine.tap in listed.dropped
            else []
        )
        gone += [
            ("inet", "dropped", "delete", [each])
            for each in (address, machine.mac)
            if each in listed.dropped
        ]
        # What counts for it goes by itself in a while, or not: to add it makes its end sure.
        gone += [
            ("inet", name, change, [each])
            for name, those in listed.counted.items()
            for each in those & {address, machine.mac}
            for change in ("add", "delete")
        ]
        with suppress(HypervisorError):  # whoever was quicker has done it
            self._nft(
                "".join(self._elements(*each) for each in gone)
                + (self._gone(listed, IPv4Address(address)) if address else "")
            )

    def _gone(self, listed: _Listed, address: IPv4Address) -> str:
        """The ends of an address's verdicts and of what it has for DNS, of those that there are."""
        both = (("machines", str(address)), ("machines6", str(self._paired(address))))
        verdicts = (
            self._elements("inet", name, "delete", [each])
            for name, each in both
            if each in listed.verdicts
        )
        # What is there in part only can't be deleted as a whole: it is made first.
        lane = self._lane(address) + queries.without(self._table, address)
        return "".join(verdicts) + (lane if str(address) in listed.lanes else "")

    def dropped(self) -> dict[MachineId, int]:
        """How many packets of each machine were dropped; empty where that can't be seen."""
        try:
            listed = self._listed()
        except NotPermitted:
            return {}
        if listed is None:
            return {}
        return {
            machine: sum(
                listed.dropped.get(each, 0)
                for each in (machine.tap, machine.mac, element.rpartition(" ")[2])
            )
            for machine, element in listed.frames.items()
        }

    def drift(self) -> str:
        """In words, how the rules in the kernel differ from ours; empty where they don't, or where
        there are none yet.
        """
        listed = self._listed()
        if listed is None:
            return "" if not self._state.exists() else f"the nftables table {self._table} is gone"
        return (
            ""
            if self._is_as_made(listed)
            else f"the nftables table {self._table} is not as vmrunner made it"
        )

    def remove(self) -> list[str]:
        """Remove both tables; returns what was removed, in words. Raises NameClash where one of
        them is somebody else's.
        """
        there = [family for family in _FAMILIES if self._table_of(family)]
        for family in there:
            self._nft(f"table {family} {self._table}\ndelete table {family} {self._table}\n")
        self._state.unlink(missing_ok=True)
        return [f"nftables table {self._table}"] if there else []

    # ---- nft ----

    def _elements(self, family: str, name: str, change: str, elements: Iterable[str]) -> str:
        listed = ", ".join(elements)
        return f"{change} element {family} {self._table} {name} {{ {listed} }}\n" if listed else ""

    def _nft(self, script: str) -> None:
        """Run a script: all of it takes effect at once, or nothing of it."""
        if script:
            self._run(["-f", "-"], script)

    def _run(self, command: list[str], script: str = "") -> str:
        try:
            done = subprocess.run(
                [_program(), *command],
                input=script,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HypervisorError(f"nft can't be run: {error}.", _HINT) from None
        if done.returncode:
            said = " ".join(done.stderr.split("\n")[0].split()) or f"exit {done.returncode}"
            # nft's own words: it has one exit code for everything.
            kind = next((kind for word, kind in _KINDS.items() if word in done.stderr), None)
            raise (kind or HypervisorError)(
                f"nft refused the rules of {self._table}: {said}", _HINT
            )
        return done.stdout

    def _listed(self) -> _Listed | None:
        """Both tables; None where one of them is missing."""
        # One program for each: nft (1.1.3) finds only the last of several tables that it is to
        # list.
        found = [self._table_of(family) for family in _FAMILIES]
        if not all(found):
            return None
        return _parse([each for objects in found for each in objects], self._manager)

    def _table_of(self, family: str) -> list[dict[str, dict[str, Any]]]:
        """One of the tables, as nft lists it; nothing where it is missing. Raises NameClash where
        somebody else's has its name.
        """
        table = [family, self._table]
        try:
            found: list[dict[str, dict[str, Any]]] = json.loads(
                self._run(["-j", "list", "table", *table])
            )["nftables"]
            said = [each["table"].get("comment") for each in found if "table" in each]
            # Before nft 1.1 JSON has no comments.
            words = (
                said[0] if said and said[0] is not None else self._run(["list", "table", *table])
            )
        except _NoTable:
            return []
        if _MARK not in words:
            raise NameClash(
                f"The nftables table {family} {self._table} is not vmrunner's.",
                "It is somebody else's, and vmrunner leaves it alone: choose another `manager`.",
            )
        return found


def _program() -> str:
    """Where nft is; the search path of people who are not root often ends before."""
    found = shutil.which("nft") or shutil.which("nft", path=_PLACES)
    if found is None:
        raise HypervisorError("The program nft is not installed.", _HINT)
    return found


def _merged(own: _Network, closed: tuple[_Network, ...]) -> list[_Network]:
    """What is closed, and the machines' own network, which an admin may have put anywhere."""
    found = list(closed)
    if not any(own.subnet_of(block) for block in closed):
        found.append(own)
    return sorted(found)


def _pairs(pairs: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{address} . {port}" for address, port in sorted(pairs)]


def _by_name(sets: Mapping[str, Iterable[str]]) -> Held:
    """The addresses of each allowed name, from what its sets hold."""
    return _joined(*({name.partition("-")[2]: its} for name, its in sets.items()))


def _joined(*several: Held) -> Held:
    """All addresses of each name."""
    found: dict[str, set[str]] = {}
    for each in several:
        for name, addresses in each.items():
            found.setdefault(name, set()).update(addresses)
    return found


def _parse(objects: list[dict[str, dict[str, Any]]], manager: str) -> _Listed:
    """What nft lists in JSON (libnftables-json(5))."""
    listed, rules = _Listed(""), []
    for wrapped in objects:
        ((kind, found),) = wrapped.items()
        if kind == "metainfo":
            continue
        found = {key: value for key, value in found.items() if key != "handle"}
        if lane := queries.LANE.fullmatch(found.get("chain", "") or found.get("name", "")):
            found.pop("elem", None)
            own = json.dumps({kind: found}, sort_keys=True).replace(lane[1], "*")
            listed.lanes.setdefault(lane[1], []).append(own)
            continue
        if kind in {"set", "map"} and (
            found["name"] in _CHANGING or found["name"].startswith(_NAMES)
        ):
            _take(
                listed, manager, kind, found.get("family", ""), found["name"], found.pop("elem", [])
            )
        rules.append({kind: found})
    # One that is not as the others, or missing, is seen; how many there are makes no difference.
    machines = {address for address in listed.verdicts if ":" not in address}
    lanes = {tuple(sorted(listed.lanes.get(each, []))) for each in machines | {*listed.lanes}}
    rules.append({"lanes": {"": json.dumps(sorted(lanes))}})
    listed.digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return listed


def _take(
    listed: _Listed, manager: str, kind: str, family: str, name: str, elements: list[Any]
) -> None:
    for element in elements:
        if kind == "map":
            address, verdict = element
            if name in queries.MAPS:
                own = f"{name} {verdict}".replace(address, "*")
                listed.lanes.setdefault(address, []).append(own)
            else:
                listed.verdicts[address] = verdict["goto"]["target"]
            continue
        inner = (
            element["elem"] if isinstance(element, dict) and "elem" in element else {"val": element}
        )
        value = inner["val"]
        if name == "machines":
            tap, mac, address = value["concat"]
            if machine := MachineId.of_tap(manager, tap):
                listed.frames[machine] = f'"{tap}" . {mac} . {address}'
        elif name == "machines6":
            tap, *numbers = value["concat"]
            if machine := MachineId.of_tap(manager, tap):
                listed.frames6[machine] = " . ".join([f'"{tap}"', *map(str, numbers)])
        elif name in {"forge", "forge6"}:
            address, port = value["concat"]
            listed.forge.add((address, port))
        elif name in _COUNTING:
            listed.counted.setdefault(name, set()).add(value)
        elif name == "dropped":
            listed.dropped[value] = inner.get("counter", {}).get("packets", 0)
        elif name.startswith(_NAMES):
            listed.names.setdefault(name, []).append(value)
