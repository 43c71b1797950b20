"""A progress bar for a judgement that runs from the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[int, int, str], None]  # cases done, cases in all, what is done next


@contextlib.contextmanager
def progress_bar(quiet: bool, title: str = "judging") -> Iterator[Progress | None]:
    """What a judgement reports its progress to while the block runs: a bar on stderr.

    None where `quiet` is set or stderr is no terminal, so that pipes and logs hold no trace of it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from coatref.cli.output import console

    err = console(stderr=True)
    if quiet or not err.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=f"{title}: {what}")
