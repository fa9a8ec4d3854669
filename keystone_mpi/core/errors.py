"""Errors: one root, split by who has to act.

    KeystoneError
      UserError      the person who wrote the sweep file or the command line
      SolverError    the program that a task runs
      ClusterError   the machine, its MPI, its file system, its queue
      InternalError  us: keystone_mpi has a defect

A message names the object, what was found, what is allowed and, where there
is one, the next command to type. Only `InternalError` is shown with a
traceback.
"""

from __future__ import annotations

from pathlib import Path


class KeystoneError(Exception):
    """Root of every error that keystone_mpi raises on purpose."""


class UserError(KeystoneError):
    """Something the user wrote cannot be run as it stands (exit code 2)."""


class SweepFileError(UserError):
    """A sweep file, task file or table is wrong.

    Parameters
    ----------
    path : Path or None
        The file at fault, None when the text came from no file.
    where : str
        The key, line or column at fault, such as ``"params.kappa"`` or
        ``"line 7"``; may be empty.
    problem : str
        What was found and what is allowed, one sentence.
    hint : str
        A near match or the next thing to do; may be empty.
    """

    def __init__(self, path: Path | None, where: str, problem: str, hint: str = "") -> None:
        self.path = path
        self.where = where
        self.problem = problem
        self.hint = hint
        place = ": ".join(part for part in (str(path) if path else "", where) if part)
        text = f"{place}: {problem}" if place else problem
        super().__init__(f"{text} ({hint})" if hint else text)


class OutputError(UserError):
    """The output file cannot be used for this run."""


class SolverError(KeystoneError):
    """A solver, not keystone_mpi, went wrong."""


class ClusterError(KeystoneError):
    """The machine does not give what the run needs (MPI, disk, locks, queue)."""


class MasterSilentError(ClusterError):
    """A worker has not heard of its master for too long: the master, or its node, is gone."""


class RunInterruptedError(ClusterError):
    """A run, or a program's engine, ended before its tasks had: drained, walltime, disk (exit code 75).

    What has ended is safe in the results file; the next start goes on from there.
    """


class LauncherMismatchError(ClusterError):
    """mpiexec or srun and the MPI library do not belong together."""


class LeaseHeldError(ClusterError):
    """Another master owns this run."""


class RequestError(UserError, ValueError):
    """An argument of the Python API cannot be used; nothing of the call was done."""


class UnknownTaskError(UserError, KeyError):
    """No task of this program or of its results file has this id."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes.
        return str(self.args[0]) if self.args else ""


class ClosedError(UserError, RuntimeError):
    """A pipeline or executor was used after it was closed."""


class InternalError(KeystoneError):
    """keystone_mpi broke one of its own rules."""
