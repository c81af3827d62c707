"""Cells as jobs of a cluster, by submitit: of SLURM, or processes of this machine that are handled the same.

A job is `CellJob` on one cell, as a process of this machine does it: its result is the cell's result.json, and nothing
that submitit hands back is read. What a job is given is a pickle, in a folder that nobody else may write to.

jobs/<a submission>/   submitit's: that pickle, and what each job said
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaq.benchmark.cells import CellJob, record
from zaq.benchmark.plan import Cell
from zaq.config.bounds import plain_json
from zaq.errors import RunError, UserError, install, unknown
from zaq.run import disk_errors

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

__all__ = ["Cluster"]

CLUSTERS = ("slurm", "local")
TRIES = 3  # jobs that a cell may kill
ARRAY = 1000  # jobs in the queue at once: SLURM takes no more as one array, unless it is told to
MINUTES = 60
# A cell is one process on one node, and what it says last on its own stderr is told.
NOT_OFFERED = {"nodes", "tasks_per_node", "ntasks_per_node", "num_gpus", "stderr_to_stdout"}
WHOLE = {"max_num_timeout": 0, "array_parallelism": 1, "signal_delay_s": 0, "time": 1, "timeout_min": 1}  # at least
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Cluster:
    """Where jobs go, and what each asks for there."""

    name: str
    parameters: dict[str, Any]  # as submitit's AutoExecutor takes them
    constants: dict[str, int]  # as its constructor does
    at_once: int

    @classmethod
    def parse(cls, given: tuple[str, ...]) -> "Cluster":
        """What `--slurm KEY=VALUE` asks for, each value in JSON or else a text.

        Raises UserError for a key or a value that submitit does not take, and where it or the cluster is not there.
        """
        try:
            from submitit import AutoExecutor, SlurmExecutor
        except ImportError as error:
            raise UserError(
                f"--slurm: jobs are handed over by submitit, which is not installed: {install('slurm')}."
            ) from error
        shared = AutoExecutor._typed_parameters()
        known = {"cluster", *WHOLE, *shared, *SlurmExecutor._valid_parameters()} - NOT_OFFERED
        said: dict[str, Any] = {"name": "zaq"}
        for text in given:
            key, equals, value = text.partition("=")
            if not equals or key not in known:
                raise UserError(f"--slurm {text}: " + unknown("option", key, known) + " Write KEY=VALUE.")
            said[key] = _value(text, value, int if key in WHOLE else shared.get(key), WHOLE.get(key, 0))
        name = said.pop("cluster", "slurm")
        if name not in CLUSTERS:
            raise UserError(f"--slurm cluster={name}: " + unknown("cluster", str(name), CLUSTERS))
        if name == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise UserError(
                "--slurm: there is no SLURM here (no sbatch and srun on the PATH). Call zaq on a machine that hands "
                "in jobs, or say --slurm cluster=local, which runs them as processes of this one."
            )
        constants = {f"{name}_max_num_timeout": said.pop("max_num_timeout")} if "max_num_timeout" in said else {}
        at_once = ARRAY if name == "slurm" else said.get("array_parallelism", 1)
        said.setdefault("timeout_min", said.get("time", MINUTES))
        found = cls(name, {k if k in shared else f"slurm_{k}": v for k, v in said.items()}, constants, at_once)
        with tempfile.TemporaryDirectory() as nowhere:
            found._executor(nowhere)
        return found

    def rows(
        self, work: CellJob, cells: list[Cell], say: Callable[[str], object]
    ) -> Generator[dict[str, Any], None, None]:
        """The cells' rows as their jobs end. A job that dies is followed by another, which goes on where it was.

        Jobs that are left when the caller closes this, or is interrupted, are cancelled. Raises RunError where the
        cluster takes no jobs.
        """
        todo, running, tries = list(cells), dict["Job[Any]", Cell](), Counter[str]()
        try:
            while todo or running:
                room = self.at_once - len(running)
                now, todo = todo[:room], todo[room:]
                if now:
                    tries.update(cell.id for cell in now)
                    running |= zip(self._submitted(work, now), now, strict=True)
                ended = [job for job in running if job.done()]
                for job in ended:
                    cell = running.pop(job)
                    row, died = _row(work, cell), not job.paths.result_pickle.exists()
                    if row is None and died and tries[cell.id] < TRIES:
                        say(f"{cell.id}: job {job.job_id} died; another one goes on with it")
                        todo.append(cell)
                        continue
                    row = row or _failed(work, cell, job, f"{TRIES} jobs of it died" if died else "its job failed")
                    if row is not None:
                        yield row
                if not ended:
                    time.sleep(0.5 + len(running) / 100)  # two questions to the disk each
        finally:
            for job in running:
                with suppress(OSError):
                    job.cancel(check=False)
            if running:
                say(f"jobs cancelled: {len(running)}")

    def _submitted(self, work: CellJob, cells: list[Cell]) -> "list[Job[Any]]":
        """A job for each cell, an array together."""
        jobs = work.folder / "jobs"
        with disk_errors(jobs):
            jobs.mkdir(exist_ok=True)
            place = tempfile.mkdtemp(dir=jobs)  # ours alone; of its own, as process ids, which name local jobs, repeat
        try:
            with _stderr_into(Path(place) / "submission.err"):
                return self._executor(place).map_array(work, cells)
        except (RuntimeError, OSError) as error:
            raise RunError(f"--slurm: {self.name} took no jobs ({' '.join(str(error).split())}).") from error

    def _executor(self, place: str) -> "AutoExecutor":
        """submitit's. Raises UserError for a value that it does not take."""
        from submitit import AutoExecutor

        try:
            executor = AutoExecutor(place, self.name, **self.constants)
            executor.update_parameters(**self.parameters)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise UserError(f"--slurm: submitit takes no such value ({' '.join(str(error).split())}).") from error
        return executor


def _value(text: str, value: str, kind: type | None, least: int) -> Any:
    """A value in JSON, or else as a text; of the kind that submitit expects, where it says one."""
    found: Any = value
    if kind is not str:
        with suppress(ValueError):
            found = plain_json(value)
    if kind is not None and type(found) not in ((int, float) if kind is float else (kind,)):
        raise UserError(f"--slurm {text}: {KINDS[kind]} is expected.")
    if kind in (int, float) and found < least:
        raise UserError(f"--slurm {text}: at least {least} is expected.")
    return found


def _row(work: CellJob, cell: Cell) -> dict[str, Any] | None:
    """The row of a cell that is finished."""
    place = work.folder.result(cell).parent
    with suppress(OSError):  # a network file system looks again where we change something ourselves
        place.chmod(place.stat().st_mode)
    return None if work.folder.open_cells([cell], work.failed_before) else work.folder.results([cell])[0]


def _failed(work: CellJob, cell: Cell, job: "Job[Any]", why: str) -> dict[str, Any] | None:
    """The row of a cell that no job brings to an end. None where another process holds it."""
    log = job.paths.stderr
    said = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    with work.folder.claim(cell, work.failed_before) as ours:
        return record(cell, work.folder, {"error": f"{why}: {last} ({log})"}) if ours else None


@contextmanager
def _stderr_into(path: Path) -> Iterator[None]:
    """Processes that begin inside have a file for their stderr: Ctrl-C ends submitit's local ones with a trace each."""
    kept = os.dup(2)
    try:
        with path.open("a") as stream:
            os.dup2(stream.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
