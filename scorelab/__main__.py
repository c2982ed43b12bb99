"""``python -m scorelab`` is the command ``scorelab``."""

import sys

from scorelab.run.cli import main

if __name__ == "__main__":
    sys.exit(main())
