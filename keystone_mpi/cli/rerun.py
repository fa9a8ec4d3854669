"""`keystone-mpi rerun`: one task here, now, in the foreground; the first step of every debugging.

Rule: the task's own argv, environment and input files, on this terminal; no
record is read for anything else and none is written. A task with a work folder
gets a fresh temporary one.

    results file --> sweep, parameters --(Renderer)--> Launch --> subprocess here --> its exit code
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.opening import open_run
from keystone_mpi.cli.spelling import spell_out
from keystone_mpi.core.errors import UserError

if TYPE_CHECKING:
    from keystone_mpi.tools.recipe import Launch, Recipe

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Sent on to the solver; the terminal itself sends it INT and QUIT."""
NOT_FOUND = 127
NOT_EXECUTABLE = 126


@click.command("rerun")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("task")
@click.option("--keep-workdir", is_flag=True, help="Leave the temporary work folder for a look at it.")
@click.option(
    "-n", "--print", "print_only", is_flag=True, help="Print the command and where it runs; run nothing."
)
def command(file: Path, task: str, keep_workdir: bool, print_only: bool) -> int:
    """Run TASK of FILE here, in the foreground, and return its exit code.

    The results file is not changed.
    """
    scratch = Path(tempfile.mkdtemp(prefix="keystone-rerun-"))
    kept = False
    try:
        with open_run(file) as view:
            index = view.index_of_id(task)
            recipe, launch = spell_out(view, index, scratch)
        if recipe.workdir == "none" and not Path(launch.cwd).is_dir():
            raise UserError(
                f"{wording.path(view.path)}: task {index} runs in {launch.cwd}, which is not there on this "
                "machine; run this where the sweep was started"
            )
        launch, argv, environment = _spelled(recipe, launch, scratch)
        if print_only:
            _say(f"cd {wording.command(launch.cwd)}" if recipe.workdir == "none" else "in a fresh folder:")
            click.echo(wording.command(*launch.argv))
            return 0
        _prepare(index, recipe, launch)
        _say(f"task {index}: {wording.command(*launch.argv)}")
        _say(f"in {launch.cwd}")
        exit_code = _run(launch, argv, environment)
        _say(f"task {index} ended with {_ending(exit_code)}; {wording.path(view.path)} is unchanged")
        kept = keep_workdir
        if kept:
            _say(f"its folder is kept: {launch.cwd if recipe.workdir != 'none' else scratch}")
        return exit_code
    finally:
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)


def _spelled(
    recipe: Recipe, launch: Launch, scratch: Path
) -> tuple[Launch, tuple[str, ...], dict[bytes, bytes]]:
    """Return the launch as it is shown, the argv to run, and what the solver sees.

    That is this shell's variables without a launcher's, what the recipe's setup
    leaves, and the task's own.
    """
    from keystone_mpi.execution.environment import scrub
    from keystone_mpi.execution.preparations import needs_preparation, preparation_of
    from keystone_mpi.execution.preparing import prepare_worker
    from keystone_mpi.execution.ranks_command import with_ranks
    from keystone_mpi.tools.launch_environment import solver_environment

    base = {os.fsencode(name): os.fsencode(value) for name, value in scrub(dict(os.environ)).items()}
    argv = launch.argv
    if needs_preparation(recipe):
        prepared = prepare_worker(preparation_of(recipe, 0, {}), base)
        if prepared.error:
            raise UserError(prepared.error)
        base = prepared.env
        if launch.ranks:
            launch, argv = with_ranks(launch, recipe, prepared)
    environment = solver_environment(base, launch)
    environment[b"KEYSTONE_RESULT"] = os.fsencode(scratch / "result")
    return launch, argv, environment


def _prepare(index: int, recipe: Recipe, launch: Launch) -> None:
    """Make the work folder and its input files."""
    from keystone_mpi.execution.slot_messages import SlotOrder
    from keystone_mpi.execution.workfolder import prepare

    try:
        prepare(SlotOrder(index=index, attempt=1, launch=launch), recipe)
    except OSError as error:
        raise UserError(f"task {index}: its input files cannot be made: {error}") from error


def _run(launch: Launch, argv: tuple[str, ...], environment: dict[bytes, bytes]) -> int:
    """Run the solver on this terminal and return its exit code, 128 + N for signal N."""
    stdin = None
    try:
        if launch.stdin:
            stdin = open(launch.stdin, "rb")  # noqa: SIM115 - closed with the solver
        process = subprocess.Popen(argv, cwd=launch.cwd, env=environment, stdin=stdin)
    except OSError as error:
        if error.filename == launch.stdin and launch.stdin:
            raise UserError(f"standard input {launch.stdin}: {error.strerror}") from error
        print(f"keystone-mpi: {launch.argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    finally:
        if stdin is not None:
            stdin.close()
    with _Passing(process.send_signal):
        process.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class _Passing:
    """While the solver runs, signals are its business: INT and QUIT reach it from the terminal."""

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self._saved: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGQUIT):
            self._saved[number] = signal.signal(number, lambda *_: None)
        for number in FORWARDED:
            self._saved[number] = signal.signal(number, self._forward)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's
        self._send(number)


def _ending(exit_code: int) -> str:
    """Say an exit code."""
    if exit_code > 128:
        try:
            return f"signal {signal.Signals(exit_code - 128).name}"
        except ValueError:
            pass
    return f"exit code {exit_code}"


def _say(text: str) -> None:
    """Write one line beside the solver's own output."""
    print(f"keystone-mpi: {text}", file=sys.stderr, flush=True)
