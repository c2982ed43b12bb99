"""What stands in the text of an optimised HLO module: collectives with their bytes, loops with their counts, cycles by source.

The text is what XLA hands to the device, so a collective that is not in it is not made.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# The sizes of elements that are not their last digits in bits.
_BITS = {"pred": 8, "token": 0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_COUNT = re.compile(r'"known_trip_count":\{"n":"?(\d+)"?')
# Small collectives carry the means of metrics, which cost their latency alone.
SMALL = 1024


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
        kind: such as ``"all-reduce"``.
        sent: bytes of the array that is reduced, or gathered: the whole one, on one device.
        group: devices that exchange with one another.
        times: how often it is made in a run of the program: the trips of the loops around it.
        source: the name of the operation that it comes from.
    """

    kind: str
    sent: int
    group: int
    times: int
    source: str

    @property
    def small(self) -> bool:
        """Whether it is a few numbers."""
        return self.sent <= SMALL

    @property
    def bytes(self) -> float:
        """Bytes that a device has to send in the best algorithm: ``2 (n-1)/n`` of what is reduced, ``(n-1)/n`` of the others."""
        share = (self.group - 1) / self.group if self.group else 0.0
        if self.kind == "collective-permute":
            share = 1.0
        return self.times * self.sent * share * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a module on so many devices, in the order of the text.

    An asynchronous pair is one. So are the pieces of one collective that a TPU makes while it computes something else: they
    have one channel. A reduction of which a TPU keeps a part is a ``reduce-scatter``, though it is written as an all-reduce
    and a slice.
    """
    found, channels = [], set()
    for name, line, times, inside in _run(text, fused=True):
        kind = next((k for k in COLLECTIVES if re.search(rf"[\s)]{k}(-start)?\(", line)), None)
        if kind is None:
            continue
        channel = re.search(r"channel_id=(\d+)", line)
        if channel and (kind, channel.group(1)) in channels:
            continue
        channels.add((kind, channel.group(1)) if channel else (kind, name))
        shape, _, rest = line.partition(f" {kind}")
        sizes = [_bytes(dtype, sides) for dtype, sides in _ARRAY.findall(shape)]
        if rest.startswith("-start") and kind in ("all-gather", "collective-permute"):
            # The operands stand in the shape of a started gather, before the results.
            sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[:1]
        group = _group(line, devices)
        # A scatter gives the part of one device; what is reduced is the whole.
        sent = sum(sizes) * (group if kind == "reduce-scatter" else 1)
        if inside.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(kind, sent, group, times, source.group(1) if source else name))
    return found


def loops(text: str) -> list[int]:
    """The trips of the loops of the program, in their order; 0 where they are not known."""
    computations, _ = _computations(text)
    return [_trips(line, computations) for _, line, *_ in _run(text) if " while(" in line]


def cycles(text: str) -> Counter[str]:
    """Cycles that the TPU compiler expects of the operations, by the name of what they come from; empty for other devices.

    Numbers in names are left out, so that the blocks of a network are one.
    """
    found: Counter[str] = Counter()
    for _, line, times, _ in _run(text):
        expected = re.search(r'"estimated_cycles":"(\d+)"', line)
        if expected:
            source = re.search(r'op_name="([^"]*)"', line)
            name = re.sub(r"_?\d+", "", source.group(1).split(";")[0]) if source else "(moves)"
            found[name] += times * int(expected.group(1))
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            inside = found.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            inside = None
        elif inside is not None:
            inside.append(line)
    if not entry:
        raise ValueError("hlo: the text has no ENTRY computation: expected that of a compiled module")
    return found, entry


def _run(text: str, fused: bool = False) -> Iterator[tuple[str, str, int, str]]:
    """Every instruction that runs: its name, its line without the name, how often it runs, and the computation that it is in.

    What is fused is one instruction, unless its parts are asked for. All branches of a conditional count, since any may run.
    """
    computations, entry = _computations(text)

    def walk(computation, times):
        for line in computations.get(computation, ()):
            instruction = _INSTRUCTION.match(line)
            if not instruction:
                continue
            name, rest = instruction.groups()
            yield name, rest, times, computation
            called = [part.strip().lstrip("%") for group in _BRANCHES.findall(rest) for part in group.split(",")]
            if fused or " fusion(" not in rest:
                # What is applied to elements (to_apply) is no program of its own.
                called += _CALLED.findall(rest)
            inner = times * max(1, _trips(rest, computations)) if " while(" in rest else times
            for other in called:
                yield from walk(other, inner)

    yield from walk(entry, 1)


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Of a loop, what XLA says of it, or the one constant that its condition compares with; 0 where neither is there."""
    if said := _COUNT.search(line):
        return int(said.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    body = "\n".join(computations.get(condition.group(1), ())) if condition else ""
    limits = re.findall(r"s32\[\][^ ]* constant\((\d+)\)", body)
    return int(limits[0]) if len(limits) == 1 and "direction=LT" in body else 0


def _bytes(dtype: str, sides: str) -> int:
    digits = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype, int(digits.group()) if digits else 0)
    return math.prod(int(side) for side in sides.split(",") if side) * bits // 8


def _group(line: str, devices: int) -> int:
    """The size of the groups that exchange; all devices where none are stated."""
    if over := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", over.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", over.group(2)) if axis in sizes)
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(tiled.group(2))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed.group(1).split(","))
    return devices
