"""Running experiments from config files. The only package that knows gin and rich."""
