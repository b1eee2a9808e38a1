"""The command line: one module per subcommand, imported only when it is called.

Each module parses, calls one public function, shows progress and prints. `main` is the console script `drope`.
"""

from __future__ import annotations

from drope.commands.app import build, main

__all__ = ["build", "main"]
