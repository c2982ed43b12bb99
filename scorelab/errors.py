"""What is told to whoever runs an experiment, in one line: a mistake, or something that is hardly meant."""

from __future__ import annotations

from pathlib import Path


class ConfigError(Exception):
    """A mistake in a config file, an override, a command or the data."""


class WeightsError(ConfigError, ValueError):
    """A file of weights is missing, damaged, of another kind, or asks for what is not allowed; the message names the file."""


class ConfigWarning(UserWarning):
    """Something in a config file that has no effect, or that does not suit the data."""


def shown(path: Path) -> str:
    """A path as a person would type it: relative where it lies below the working folder."""
    inside = path.is_relative_to(Path.cwd()) and path != Path.cwd()
    return str(path.relative_to(Path.cwd())) if inside else str(path)
