"""One owner of a folder at a time."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scorelab.errors import ConfigError, shown
from scorelab.files import naming

try:
    import fcntl
except ImportError:  # Windows: the file alone.
    fcntl = None  # type: ignore[assignment]

# Seconds between two signs of life, and without one after which an owner on another host counts as dead.
PULSE, SILENCE = 15.0, 120.0


class Lock:
    """The right to write in a folder, from ``with`` to its end; another owner at the same time is a ConfigError.

    The file ``lock`` (or ``name``) names the process, its start and its host. The system's lock on it (``flock``) ends with the
    process, however that ends, so that a number which a later process got again is not taken for the owner. Where a file system
    has no such locks, the process named is looked for. Of a process on another host only the file can be seen: the owner touches it
    every 15 s, and after two minutes without that, by the clock of the file system, it is taken over.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], name: str = "lock"):
        self.path, self._say = folder / name, say
        self._made: list[Path] = []
        self._descriptor, self._end = -1, threading.Event()

    def __enter__(self) -> Lock:
        self._made = _make(self.path.parent)
        try:
            with naming(self.path):
                self._acquire()
        except BaseException:
            self._unmake()
            raise
        self._thread = threading.Thread(target=self._pulse, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *details) -> None:
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            # While it is still ours: whoever opened the file meanwhile sees that it is gone and makes another.
            self.path.unlink()
        os.close(self._descriptor)
        self._unmake()

    def _acquire(self) -> None:
        for attempt in itertools.count():
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                locked = _flock(descriptor)
                before = _read(descriptor)
                if locked is False and not before and attempt < 20:
                    # Its owner is about to write its name, or has just removed the file.
                    os.close(descriptor)
                    time.sleep(0.05)
                    continue
                if locked is False or (before and not self._dead(before, locked is True)):
                    raise ConfigError(
                        f"{shown(self.path.parent)} is in use by {_who(before)}: wait for it or stop it"
                        + ("" if locked is False else f"; if it is gone, delete {shown(self.path)}")
                    )
                if not self._current(descriptor):
                    os.close(descriptor)
                    continue
                if before:
                    self._say(f"note: {shown(self.path.parent)} was in use by {_who(before)}, which is gone: taken over")
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_me()).encode() + b"\n", 0)
                os.fsync(descriptor)
            except BaseException:
                with suppress(OSError):
                    os.close(descriptor)
                raise
            self._descriptor = descriptor
            return

    def _current(self, descriptor: int) -> bool:
        """Whether the file opened is still the one of that name."""
        with suppress(FileNotFoundError):
            there, ours = os.stat(self.path), os.fstat(descriptor)
            return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        return False

    def _dead(self, owner: dict[str, Any], locked: bool) -> bool:
        if owner.get("host") == socket.gethostname():
            # With the system's lock in hand there is no owner on this host.
            return locked or _started(owner.get("pid")) != owner.get("started")
        return self._silence() > SILENCE

    def _silence(self) -> float:
        """Seconds since the last sign of life, both times by the clock of the file system."""
        probe = self.path.with_name(f".lock.{os.getpid()}.tmp")
        try:
            probe.write_bytes(b"")
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _pulse(self) -> None:
        while not self._end.wait(PULSE):
            with suppress(OSError):
                os.utime(self._descriptor)

    def _unmake(self) -> None:
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were missing, outermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _flock(descriptor: int) -> bool | None:
    """True with the lock, False where another process has it, None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(descriptor: int) -> dict[str, Any]:
    """What the file says; {} for a new one. One that a kill left without content has no owner."""
    with suppress(ValueError):
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        return found if isinstance(found, dict) else {}
    return {}


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "started": _started(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _who(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"


def _started(pid: Any) -> str | None:
    """When a process of this host began, in the system's own unit, or "alive" where that is not told; None without the process."""
    try:
        # The name of the program, in brackets, may hold spaces.
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, TypeError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    if os.name == "nt":
        # There, os.kill ends a process whatever the signal.
        return "alive"
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return "alive"
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return "alive"
