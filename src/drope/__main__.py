"""`python -m drope`, the same as `drope`."""

from __future__ import annotations

import sys

from drope.commands import main

if __name__ == "__main__":
    sys.exit(main())
