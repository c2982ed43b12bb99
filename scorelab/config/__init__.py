"""Config files: gin, known to this package alone."""

from scorelab.config.build import Config, load, versions

__all__ = ["Config", "load", "versions"]
