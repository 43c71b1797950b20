"""The command line: `coatref specs`, `spec`, `forward` and `info`; and `check`, `cases` and `selftest` of the judge.

Exit codes: 0 done, 1 the answer is "no", 2 wrong usage or an error (one line on stderr), 130 interrupted.
Nothing but this package and the judge's commands and reports imports typer and rich.
"""

from coatref.cli.app import main

__all__ = ["main"]
