"""Config files: gin, known to this package alone."""

from scorelab.config.build import Config, load, use_cpu_devices, versions

__all__ = ["Config", "load", "use_cpu_devices", "versions"]
