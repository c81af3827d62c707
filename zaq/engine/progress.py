"""How a run tells where it is: silently, or on a terminal with the time left."""

from collections.abc import Iterator

__all__ = ["Progress", "TerminalProgress", "in_notebooks"]


class Progress:
    """Says nothing. A step is whatever the caller counts."""

    def track(self, what: str, steps: int) -> Iterator[int]:
        """The numbers 0 .. steps - 1, shown as a bar named `what` where there is somebody to see it."""
        yield from range(steps)

    def say(self, what: str) -> None:
        """One line about something short."""


class TerminalProgress(Progress):
    """Bars with the time left, on stderr, by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def track(self, what: str, steps: int) -> Iterator[int]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console) as bars:
            task = bars.add_task(what, total=steps)
            for step in range(steps):
                yield step
                bars.advance(task)

    def say(self, what: str) -> None:
        self.console.print(what, highlight=False, markup=False)


def in_notebooks() -> Progress:
    """The same bars in a notebook, where rich shows them by ipywidgets; silence anywhere else."""
    from rich.console import Console

    if not Console().is_jupyter:
        return Progress()
    try:
        import ipywidgets  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        return Progress()
    return TerminalProgress()
