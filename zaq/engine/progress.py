"""How a run tells where it is: silently, line by line, or on a terminal by bars with the time left."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click

__all__ = ["LineProgress", "Planned", "Progress", "TerminalProgress", "expected", "in_notebooks"]

SURE = 0.02  # of the work: before so much of it is done, nothing is said of the time left


@dataclass(frozen=True)
class Planned:
    """A stage that is to come, and the work in it, in any unit that all of them share; `seconds`: what it may take."""

    name: str
    work: float
    seconds: float = 0.0


def expected(plan: Sequence[Planned]) -> str:
    """How long the stages may take, in words; empty where nobody knows. It is a guess from one forward pass, and is
    said before there is anything better to go by."""
    seconds = sum(stage.seconds for stage in plan)
    return f"expected: about {seconds / 60:.1f} min" if seconds else ""


class Progress:
    """Says nothing. A step is whatever the caller counts."""

    @contextmanager
    def over(self, stages: Callable[[], Sequence[Planned]]) -> Iterator[None]:
        """Inside, `track` goes through these stages; they are asked for only where somebody is told of them."""
        yield

    def track(self, what: str, steps: int) -> Iterator[int]:
        """The numbers 0 .. steps - 1, shown as a bar named `what` where there is somebody to see it."""
        yield from range(steps)

    def finished(self) -> None:
        """All stages are done, and none was broken off."""

    def say(self, what: str) -> None:
        """One line about something short."""

    def detail(self, what: str) -> None:
        """One line for who wants to know more."""


class LineProgress(Progress):
    """A line when something begins, with the time since the start, on stderr: what a log file or a queue can show.

    detailed: whether `detail` is shown.
    """

    def __init__(self, detailed: bool = False) -> None:
        self.detailed, self.began = detailed, time.monotonic()
        self.plan: list[Planned] = []
        self.number = 0  # of the stage that runs, from 1

    @contextmanager
    def over(self, stages: Callable[[], Sequence[Planned]]) -> Iterator[None]:
        self.plan, self.number = list(stages()), 0
        count = f"{len(self.plan)} stage{'s' if len(self.plan) != 1 else ''}"
        self.say(f"{count}: {', '.join(s.name for s in self.plan)}")
        if told := expected(self.plan):
            self.say(f"{told}, and the file behind it")
        try:
            yield
        finally:
            self.plan = []

    def track(self, what: str, steps: int) -> Iterator[int]:
        self.say(f"{self.title(what)}, {steps} step{'s' if steps != 1 else ''}")
        yield from range(steps)

    def say(self, what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        self.line(f"[{minutes}:{seconds:02}] {what}")

    def detail(self, what: str) -> None:
        if self.detailed:
            self.say(what)

    def line(self, text: str) -> None:
        """Show it at once."""
        click.echo(text, err=True)

    def title(self, what: str) -> str:
        """A stage with its number, `3 of 8, reconstruct`. Those that were left out are passed over, and one that nobody
        foresaw counts as one more.
        """
        if not self.plan:
            return what
        later = [i for i, stage in enumerate(self.plan) if stage.name == what and i >= self.number]
        if not later:
            self.plan.insert(self.number, Planned(what, 0.0))
        self.number = (later[0] if later else self.number) + 1
        return f"{self.number} of {len(self.plan)}, {what}"


class TerminalProgress(LineProgress):
    """Bars on stderr, by rich: one a stage, and over them one for all of it with the time left."""

    def __init__(self, detailed: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        super().__init__(detailed)
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[told]}"),
        )
        self.bars = Bars(*columns, console=self.console)
        self.open = 0  # how many are inside `_shown`

    @contextmanager
    def over(self, stages: Callable[[], Sequence[Planned]]) -> Iterator[None]:
        self.plan, self.number = list(stages()), 0
        with self._shown():
            self.whole = self.bars.add_task("all of it", total=1.0, told=expected(self.plan))
            self.earlier: float | None = None  # the part that a process before this one has done
            try:
                yield
            finally:
                self.plan = []

    def finished(self) -> None:
        self.bars.update(self.whole, completed=1.0, told="")

    def track(self, what: str, steps: int) -> Iterator[int]:
        title = self.title(what)
        with self._shown():
            self._whole(0.0)
            task = self.bars.add_task(title, total=steps, told=f"0/{steps}")
            for step in range(steps):
                yield step
                self.bars.update(task, completed=step + 1, told=f"{step + 1}/{steps}")
                self._whole((step + 1) / steps)

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def say(self, what: str) -> None:
        self.line(what)

    def _whole(self, part: float) -> None:
        """Where all of it is, when a part of the stage that runs is done."""
        if not self.plan:
            return
        work = [stage.work for stage in self.plan]
        done = (sum(work[: self.number - 1]) + part * work[self.number - 1]) / max(sum(work), 1e-9)
        self.earlier = done if self.earlier is None else self.earlier
        seconds = next(task.elapsed for task in self.bars.tasks if task.id == self.whole) or 0.0
        sure = done - self.earlier > SURE
        left = (
            f"about {seconds * (1 - done) / (done - self.earlier) / 60:.1f} min left" if sure else expected(self.plan)
        )
        self.bars.update(self.whole, completed=done, told=left)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Inside, the bars are on the screen; they stay there, as they were, behind it."""
        if not self.open:
            self.bars.start()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            if not self.open:
                self.bars.stop()
                for task in self.bars.task_ids:
                    self.bars.remove_task(task)


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
