"""``python -m ssmrl``."""

import sys

from ssmrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
