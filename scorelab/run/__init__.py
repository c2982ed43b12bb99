"""Running experiments from config files. The only package that knows gin, orbax and rich."""
