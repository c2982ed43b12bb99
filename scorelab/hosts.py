"""Several processes as one run: how they meet, what they agree on, and how all of them end when one does.

JAX moves arrays between processes. Beside it every process has one connection to host 0, for what is said rather than computed.
By it they learn whether all run the same code, at which step to stop, and that one of them is gone. Such a message is there
within milliseconds, where JAX notices a lost process by its heartbeats and then aborts without an exception.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import jax

from scorelab import devices
from scorelab.errors import ConfigError

# Seconds that a process has to end by itself, once another one is lost: it may have something of its own to say.
GRACE = 2.0
# What an answer on the port of the coordinator begins with, so that no other program is taken for it.
_HELLO = "scorelab hosts 1"
# Bytes of a message at most.
_LONGEST = 1 << 24
# Packages whose versions all hosts have to have in common.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def distributed(
    coordinator: str | None = None,
    hosts: int | None = None,
    host: int | None = None,
    *,
    timeout: float = 300.0,
    silence: float = 60.0,
) -> None:
    """Join the processes of a run, one on each host; called once in each of them, before anything uses JAX.

    Without arguments the three are those that JAX detects: of SLURM, Open MPI, Cloud TPU, or Kubernetes (with its package
    ``kubernetes``). Afterwards ``jax.devices()`` has the devices of all hosts. When a process ends without the others, these end
    too, within ``silence``, with exit status 1 and one line that names it. A script that reaches its end waits for the others.

    Args:
        coordinator: ``"ADDRESS:PORT"`` of host 0, as the others reach it; the port has to be free there.
        hosts: their number; 1 for a process that is alone, which then needs nothing.
        host: the number of this one, from 0.
        timeout: seconds within which all have to come.
        silence: seconds without a sign of life after which a host counts as lost; one whose process has ended is known at once.

    Raises:
        ConfigError: some of the three without the others, one out of its range, or a call after JAX has started. Nothing is
            detected. Nobody answers, or somebody is missing in time. Two processes have one number, or hosts other code or
            packages.
    """
    global _LINE
    if _LINE is not None:
        raise ConfigError("distributed was called before in this process: expected once")
    for name, value in dict(timeout=timeout, silence=silence).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"distributed.{name} = {value!r}: expected seconds above 0")
    local = None
    if (coordinator, hosts, host) == (None, None, None):
        coordinator, hosts, host, local = _detected(timeout)
    where = _address(coordinator, hosts, host)
    if where is None or hosts is None or host is None:
        return
    if devices.started():
        raise ConfigError("distributed was called after JAX had started: expected it first, before jax.devices() or any array")
    line = _meet(where, hosts, host, timeout, silence)
    # The handler of JAX would take SIGTERM, which here ends all hosts at one step (_Line.stops).
    with suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)
    # JAX looks for lost processes as well, and aborts: it should come later than the line that says which one it is.
    jax.distributed.initialize(
        f"{where[0]}:{where[1]}" if ":" not in where[0] else f"[{where[0]}]:{where[1]}",
        hosts,
        host,
        local_device_ids=local,
        cluster_detection_method="deactivate",
        initialization_timeout=max(10, int(timeout)),
        heartbeat_timeout_seconds=max(100, int(3 * silence)),
        shutdown_timeout_seconds=60,
    )
    _LINE = line
    line.watch()
    atexit.register(_at_exit)


def _address(coordinator: Any, hosts: Any, host: Any) -> tuple[str, int] | None:
    """The address and the port of the coordinator; None for one host that needs none. ConfigError as :func:`distributed`."""
    given = dict(coordinator=coordinator, hosts=hosts, host=host)
    for name, value, low in (("hosts", hosts, 1), ("host", host, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ConfigError(f"distributed.{name} = {value!r}: expected an integer >= {low}")
    if hosts is not None and host is not None and host >= hosts:
        raise ConfigError(f"distributed.host = {host} of {hosts} hosts: expected 0 to {hosts - 1}")
    if hosts == 1:
        return None
    if missing := [name for name, value in given.items() if value is None]:
        there = ", ".join(f"{name} = {value!r}" for name, value in given.items() if value is not None)
        raise ConfigError(
            f"distributed.{there} without {' and '.join(missing)}: expected all three, or none where JAX detects them"
        )
    name, _, port = str(coordinator).rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"distributed.coordinator = {coordinator!r}: expected ADDRESS:PORT with a port from 1 to 65535")
    return name.strip("[]"), int(port)


def count() -> int:
    """The number of hosts of this run."""
    return 1 if _LINE is None else _LINE.hosts


def number() -> int:
    """Which of them this is."""
    return 0 if _LINE is None else _LINE.host


def first() -> bool:
    """Whether this is host 0, which writes and speaks for all."""
    return number() == 0


def exchange(value: Any) -> list[Any]:
    """What each host gives, JSON data, in the order of hosts; all of them have to call it, in the same order of calls."""
    return [value] if _LINE is None else _LINE.exchange(value)


def agreed(value: Any) -> Any:
    """The value of host 0 on every host."""
    return exchange(value)[0]


def require_same(what: str, facts: dict[str, Any]) -> None:
    """ConfigError, on every host, where a host has other ``facts`` (JSON data by name) than host 0."""
    _compare(what, exchange(facts))


def stop_at(begin: Callable[[], int], asked: Callable[[], bool]) -> Callable[[], bool]:
    """A ``stop`` for :func:`scorelab.training.fit` that ends all hosts at the same step, once one of them is ``asked`` to.

    Args:
        begin: the step at which the ``fit`` that is running began.
        asked: whether this process has been told to stop.
    """
    if (line := _LINE) is None:
        return asked
    at = began = begin()

    def stop() -> bool:
        nonlocal at, began
        if began != (now := begin()):
            at = began = now
        at += 1
        return line.stops(at, asked())

    return stop


def leave(status: int, reason: str) -> NoReturn:
    """End this process of several because of something that the others know nothing of, and tell them."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if _LINE is not None:
        _LINE.tell_lost(reason)
        # They end meanwhile: an error of JAX about a process that is gone would be the last word otherwise.
        time.sleep(GRACE + _later(number()))
    # Not sys.exit: JAX would wait for the others, who wait for this one.
    os._exit(status)


def finish() -> None:
    """Wait until all hosts have come to the end of the run, and part."""
    global _LINE
    if _LINE is None:
        return
    _LINE.part()
    # It waits for all of them too, so that nothing is closed which another one still reads.
    jax.distributed.shutdown()
    _LINE.close()
    _LINE = None


_LINE: _Line | None = None


def _at_exit() -> None:
    if _LINE is None:
        return
    if (error := getattr(sys, "last_value", None)) is not None:
        await_loss()
        leave(1, f"{type(error).__name__}: {error}")
    finish()


class _Line:
    """The connections of a process: to host 0, or of host 0 to each other one."""

    def __init__(self, host: int, hosts: int, peers: dict[int, socket.socket], silence: float):
        self.host, self.hosts = host, hosts
        self._peers, self._silence = peers, silence
        self._sending = {peer: threading.Lock() for peer in peers}
        self._changed = threading.Condition()
        self._turn, self._given, self._all = 0, {}, {}
        self._asked, self._at, self._until, self._reports = False, 0, None, {}
        # The turn with which the hosts part, and the newest one that all have given to.
        self._last, self._answered = None, -1
        self._leaving, self._ending, self.losing = False, False, False

    def watch(self) -> None:
        """Begin to listen, and to give signs of life."""
        for peer, connection in self._peers.items():
            connection.settimeout(self._silence)
            threading.Thread(target=self._listen, args=(peer, connection), daemon=True).start()
        threading.Thread(target=self._pulse, daemon=True).start()

    def exchange(self, value: Any) -> list[Any]:
        """See :func:`exchange`."""
        turn, self._turn = self._turn, self._turn + 1
        if self.host == 0:
            with self._changed:
                given = self._given.setdefault(turn, {})
                given[0] = value
                self._wait(lambda: len(given) == self.hosts)
                del self._given[turn]
                self._answered = turn
            values = [given[host] for host in range(self.hosts)]
            self._send_all(dict(kind="all", turn=turn, values=values))
            return values
        self._send(0, dict(kind="give", turn=turn, value=value))
        with self._changed:
            self._wait(lambda: turn in self._all)
            return self._all.pop(turn)

    def stops(self, step: int, asked: bool) -> bool:
        """Whether ``step``, which this host has dispatched, is the last one.

        The first host that is asked tells host 0, which asks all for their steps. Having said its step, a host goes on for one more
        at most before it waits for the answer. So the step after the largest one is ahead of nobody.
        """
        with self._changed:
            self._at = step
            if asked and not self._asked:
                self._ask()
            if self._asked:
                self._wait(lambda: self._until is not None)
            return self._until is not None and step >= self._until

    def tell_lost(self, reason: str) -> None:
        """Say to the others that this process ends."""
        self._leaving = True
        self._send_all(dict(kind="lost", host=self.host, reason=f"has ended: {reason}"))

    def part(self) -> None:
        """Wait for all others; afterwards their ends are no losses."""
        self._last = self._turn
        self.exchange(None)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._peers.values():
            with suppress(OSError):
                connection.close()

    def _ask(self) -> None:
        """Begin to stop; with ``_changed`` held."""
        self._asked = True
        if self.host == 0:
            self._reports[0] = self._at
            self._send_all(dict(kind="stop"))
        else:
            self._send(0, dict(kind="stop"))

    def _wait(self, ready: Callable[[], bool]) -> None:
        # In pieces, so that a signal is handled meanwhile on every system.
        while not ready():
            self._changed.wait(0.5)

    def _pulse(self) -> None:
        while self._last is None or self._answered < self._last:
            time.sleep(min(self._silence / 6, 10.0))
            self._send_all(dict(kind="alive"))

    def _send_all(self, message: dict[str, Any]) -> None:
        for peer in self._peers:
            self._send(peer, message)

    def _send(self, peer: int, message: dict[str, Any]) -> None:
        # Who listens to this connection finds out that it is broken, and ends the process.
        with self._sending[peer], suppress(OSError):
            _write(self._peers[peer], message)

    def _listen(self, peer: int, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as lines:
                while message := _read(lines):
                    self._hear(peer, message)
            reason = "has ended"
        except TimeoutError:
            reason = f"has given no sign of life for {self._silence:g} s"
        except (OSError, ValueError) as error:
            reason = f"cannot be reached ({error})" if not isinstance(error, ConnectionError) else "has ended"
        # Host 0 has what the last turn needs when the others may go, before it has answered.
        with self._changed:
            parted = self._last is not None and (self._answered >= self._last or len(self._given.get(self._last, ())) == self.hosts)
        if not parted:
            # When the process of host 0 is gone, JAX aborts this one within a second, with the stack of its threads.
            self._end(peer, reason, GRACE if peer else 0.0, told=False)

    def _hear(self, peer: int, message: dict[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "lost":
            self._end(message["host"], message["reason"], GRACE, told=True)
        with self._changed:
            if kind == "give":
                self._given.setdefault(message["turn"], {})[peer] = message["value"]
            elif kind == "all":
                self._all[message["turn"]], self._answered = message["values"], message["turn"]
            elif kind == "stop" and self.host == 0:
                if not self._asked:
                    self._ask()
            elif kind == "stop":
                self._asked = True
                self._send(0, dict(kind="at", step=self._at))
            elif kind == "at":
                self._reports[peer] = message["step"]
                if len(self._reports) == self.hosts:
                    self._until = max(self._reports.values()) + 1
                    self._send_all(dict(kind="until", step=self._until))
            elif kind == "until":
                self._until = message["step"]
            self._changed.notify_all()

    def _end(self, peer: int, reason: str, grace: float, *, told: bool) -> NoReturn:
        """End this process since another one is lost, unless it ends by itself first."""
        with self._changed:
            already, self._ending = self._ending or self._leaving, True
        if already:
            threading.Event().wait()
        self.losing = not told
        if self.host == 0:
            self._send_all(dict(kind="lost", host=peer, reason=reason))
        time.sleep(grace + _later(self.host))
        if self._leaving:
            threading.Event().wait()
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        then = "" if "--resume" in reason else "; the same command with --resume on every host continues"
        os.write(2, f"scorelab: failed: {_said(self.host)}host {peer} {reason}{then}\n".encode())
        os._exit(1)


def await_loss() -> None:
    """Called with an error in hand: where another host is gone without a word, that is its cause; this process then ends here."""
    end = time.monotonic() + 1.0
    while _LINE is not None and time.monotonic() < end:
        if _LINE.losing:
            threading.Event().wait()
        time.sleep(0.02)


def prefix() -> str:
    """What a message of a host begins with; nothing on host 0."""
    return "" if first() else _said(number())


def _later(host: int) -> float:
    """Host 0 ends last: JAX aborts the others once it is gone."""
    return 0.0 if host else 0.5


def _said(host: int) -> str:
    return f"host {host}: " if host else ""


def _write(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(lines: Any) -> dict[str, Any] | None:
    """The next message; None at the end of the connection. ValueError for what is none."""
    line = lines.readline(_LONGEST)
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not a message of scorelab")
    return message


# How hosts meet ----------------------------------------------------------------------------------------------------------
def _meet(where: tuple[str, int], hosts: int, host: int, timeout: float, silence: float) -> _Line:
    """The connections, once all hosts are there and are alike."""
    end = time.monotonic() + timeout
    hello = dict(hello=_HELLO, host=host, hosts=hosts, facts=_facts())
    if host == 0:
        return _Line(0, hosts, _gather(where, hosts, hello, end, timeout), silence)
    connection, answer = None, None
    while answer is None:
        try:
            connection = socket.create_connection(where, timeout=max(0.1, min(5.0, end - time.monotonic())))
            connection.settimeout(max(0.1, end - time.monotonic()) + 10)
            _write(connection, hello)
            # Host 0 answers when all are there.
            answer = _read(connection.makefile("rb", buffering=0))
            if answer is not None and answer.get("hello") != _HELLO:
                raise ValueError(f"it said {answer}")
        except ValueError as error:
            raise ConfigError(
                f"{where[0]}:{where[1]} answers, and is no host 0 of scorelab ({error}): expected its port"
            ) from error
        except OSError as error:
            why = error
        else:
            why = "it closed the connection"
        if answer is None:
            if time.monotonic() > end:
                raise ConfigError(
                    f"host {host}: nobody answers at {where[0]}:{where[1]} within {timeout:g} s ({why}): expected host 0 there"
                )
            time.sleep(0.2)
    if answer["error"]:
        raise ConfigError(f"host {host}: {answer['error']}")
    assert connection is not None
    return _Line(host, hosts, {0: connection}, silence)


def _gather(where: tuple[str, int], hosts: int, hello: dict, end: float, timeout: float) -> dict[int, socket.socket]:
    """The connections of host 0 to all others."""
    peers: dict[int, socket.socket] = {}
    said, error = {0: hello}, None
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", where[1]), family=family, dualstack_ipv6=both, backlog=hosts)
    except OSError as failure:
        raise ConfigError(f"host 0 cannot listen at port {where[1]} ({failure.strerror}): expected a free port") from failure
    with listener:
        while error is None and len(said) < hosts:
            missing = [host for host in range(hosts) if host not in said]
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = listener.accept()
                connection.settimeout(10.0)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                message = _read(connection.makefile("rb", buffering=0)) or {}
            except TimeoutError:
                if time.monotonic() < end:
                    continue
                names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
                error = f"{len(missing)} of {hosts} hosts did not come within {timeout:g} s: {names}"
                continue
            except (OSError, ValueError):
                continue
            if message.get("hello") != _HELLO or not hello.keys() <= message.keys() or not isinstance(host := message["host"], int):
                # Some other program that knocks at ports.
                connection.close()
                continue
            if message["hosts"] != hosts:
                error = f"host {host} was started as one of {message['hosts']} hosts, host 0 as one of {hosts}: expected the same"
            elif host in said:
                error = f"two processes were started as host {host}: expected each number once"
            if host in said or not 0 < host < hosts:
                with suppress(OSError):
                    _write(connection, dict(hello=_HELLO, error=error))
                connection.close()
            else:
                said[host], peers[host] = message, connection
    if error is None:
        try:
            _compare("other code", [said[host]["facts"] for host in range(hosts)])
        except ConfigError as differing:
            error = str(differing)
    for connection in peers.values():
        with suppress(OSError):
            _write(connection, dict(hello=_HELLO, error=error))
    if error is not None:
        raise ConfigError(error)
    return peers


def _compare(what: str, facts: list[dict[str, Any]]) -> None:
    """ConfigError where a host has other facts than host 0, with the first that differs."""
    for host, found in enumerate(facts):
        differing = [name for name in sorted(facts[0].keys() | found.keys()) if facts[0].get(name) != found.get(name)]
        if differing:
            name = differing[0]
            more = f" ({len(differing)} differ)" if len(differing) > 1 else ""
            raise ConfigError(
                f"host {host} has {what} than host 0: {name} = {found.get(name)!r}, expected {facts[0].get(name)!r}{more}"
            )


@functools.cache
def _facts() -> dict[str, str]:
    """What has to be alike before anything is run together: the code of this package, Python and the packages below it."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    found = {"sha256 of scorelab": digest.hexdigest()[:12], "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _detected(timeout: float) -> tuple[str | None, int | None, int | None, list[int] | None]:
    """Coordinator, hosts, host and the devices of this process, as JAX detects them."""
    # What is public, jax.distributed.initialize, detects for itself and joins at once, with no word of what it has found. Here the
    # hosts meet first, so that the address and the numbers have to be known before.
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
    except Exception as error:
        raise ConfigError(f"distributed: what JAX detects here is not complete: {error}") from error
    if None in found[:3]:
        raise ConfigError(
            "distributed: JAX detects neither SLURM, Open MPI, Cloud TPU nor Kubernetes here: expected one of them, or "
            "coordinator, hosts and host"
        )
    # Where the environment names the devices, jax.distributed.initialize reads them there.
    local = None if found[3] is None or "JAX_LOCAL_DEVICE_IDS" in os.environ else list(found[3])
    return found[0], found[1], found[2], local


def signal_of(found: list[int | None]) -> int | None:
    """The signal that ends all hosts, of those that each has received; SIGTERM before Ctrl-C."""
    received = [number for number in found if number is not None]
    return (signal.SIGTERM if signal.SIGTERM in received else received[0]) if received else None
