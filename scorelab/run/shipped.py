"""``scorelab configs``: the experiments that can be run by name, each with the first sentence of its file."""

from __future__ import annotations

import re
from pathlib import Path

from scorelab.config.sources import CONFIG_ROOTS
from scorelab.errors import ConfigError

# Parts that other files include, and that run nothing alone.
_PARTS = "base"


def print_configs(pattern: str = "") -> None:
    """Print the names that contain ``pattern``, with what each is; ConfigError where there is none."""
    found = [(name, path) for name, path in shipped() if pattern.lower() in name.lower()]
    if not found:
        raise ConfigError(f"configs {pattern}: expected part of a name, such as mnist; without it all are listed")
    width = max(len(name) for name, _ in found)
    for name, path in found:
        print(f"{name:<{width}}  {says(path)}")


def shipped() -> list[tuple[str, Path]]:
    """Name and file of every experiment."""
    files = {path.relative_to(root).with_suffix(""): path for root in reversed(CONFIG_ROOTS) for path in root.rglob("*.gin")}
    return sorted((str(name), path) for name, path in files.items() if name.parts[0] != _PARTS)


def says(path: Path) -> str:
    """The first sentence of the comment at the top of a config file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    first = re.match(r"(.+?\.)(?=\s+[A-Z]|$)", " ".join(lines))
    return (first[1] if first else " ".join(lines)).strip()
