"""The command line: one file per subcommand, loaded only when it is called.

Rule: every mistake of the user ends in one line on stderr and exit code 2;
only a defect of ours shows a traceback, with rank and host (exit code 70).

    argv --> main --> KeystoneGroup --(import one module)--> command --> exit code
                         |
                         UserError, ClusterError, click errors --> "keystone-mpi: error: ..." , 2
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from keystone_mpi import __version__
from keystone_mpi.core.errors import InternalError, KeystoneError, RunInterruptedError

if TYPE_CHECKING:
    from keystone_mpi.engine.ranks import Ranks

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERNAL = 70
"""EX_SOFTWARE: never taken for "some tasks did not succeed" (1)."""
EXIT_AGAIN = 75
"""Stopped with work left: run the same command again."""

AFTER_A_DEFECT = """
  What was finished is in the results file or its journal: the same command again continues."""

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


class _Entry(NamedTuple):
    module: str
    """Below keystone_mpi.cli; holds a click command called `command`, which returns an exit code."""
    summary: str


COMMANDS = {
    "run": _Entry("run", "Run a sweep file or a task file, or continue it."),
    "status": _Entry("status", "How far a run is; from any shell, at any time."),
    "show": _Entry("show", "Everything known of one task."),
    "rerun": _Entry("rerun", "Run one task here, in the foreground; changes no file."),
    "stats": _Entry("stats", "How well a run used its slots; what its failures have in common."),
    "report": _Entry("report", "One HTML page that explains a run."),
    "export": _Entry("export", "A table of a run as CSV, JSON or Parquet."),
    "plot": _Entry("plot", "A picture of a run: timeline, durations, scaling, response."),
    "diff": _Entry("diff", "Which results changed between two runs."),
    "drain": _Entry("drain", "Let a run finish what runs and start nothing more."),
    "submit": _Entry("submit", "Write a job script for Slurm and submit it."),
    "merge": _Entry("merge", "Merge what the elements of a job array have written."),
    "tools": _Entry("tools", "Which solvers are found here, and how to install the others."),
    "doctor": _Entry("doctor", "Check this machine and its MPI; say what to change."),
    "bench": _Entry("bench", "Measure how fast the runner is on this machine."),
}


class KeystoneGroup(click.Group):
    """A group whose help needs none of its commands imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the names in the order in which a new user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import the one module that `cmd_name` lives in."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: Any = importlib.import_module(f"keystone_mpi.cli.{entry.module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown command with its near match."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{_command_hint(args[0])}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the table of commands from `COMMANDS` alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _command_hint(word: str) -> str:
    """Say what was probably meant."""
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    if near:
        return f"; did you mean `keystone-mpi {near[0]}`?"
    if os.path.exists(word):
        verb = "status" if word.endswith(".h5") else "run"
        return f"; did you mean `keystone-mpi {verb} {word}`?"
    return f"; there are {', '.join(COMMANDS)}"


@click.command(
    "keystone-mpi",
    cls=KeystoneGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog="Exit codes of run: 0 all succeeded, 1 some did not, 2 bad usage, 75 stopped with work left.",
)
@click.version_option(__version__, "-V", "--version", message="keystone-mpi %(version)s")
@click.pass_context
def group(context: click.Context) -> None:
    """One solver, ten thousand parameter sets, one allocation, one HDF5 file.

    Start with `mpiexec -n 4 keystone-mpi run sweep.toml`, or without mpiexec on
    a laptop; the same command again continues.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(EXIT_USAGE)


def main(argv: Sequence[str] | None = None, ranks: Ranks | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments after the program's name; None takes the process's own.
    ranks : Ranks or None
        The workers, brought up already, for `run`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = group.main(args=arguments, prog_name="keystone-mpi", standalone_mode=False, obj=ranks)
        sys.stdout.flush()
    except click.ClickException as error:
        return report_error(_click_message(error))
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `keystone-mpi status | head`: nobody reads on, and the flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except InternalError:
        return report_defect(arguments)
    except RunInterruptedError as error:
        report_error(str(error))
        return EXIT_AGAIN
    except KeystoneError as error:
        return report_error(str(error))
    except Exception:
        return report_defect(arguments)
    return code if isinstance(code, int) else EXIT_OK


def report_error(message: str) -> int:
    """Print one line for a mistake that somebody can mend and return exit code 2."""
    print(f"keystone-mpi: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return EXIT_USAGE


def report_defect(arguments: Sequence[str]) -> int:
    """Print the present exception with what a bug report needs and return exit code 70."""
    rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "none")
    print(
        f"{traceback.format_exc()}\n"
        f"keystone-mpi: internal error: this is a defect of keystone_mpi, not of your sweep.\n"
        f"  version {__version__}, Python {sys.version.split()[0]}, "
        f"host {socket.gethostname()}, rank {rank}\n"
        f"  command: keystone-mpi {' '.join(arguments)}\n"
        f"  Please report the lines above." + (AFTER_A_DEFECT if arguments[:1] == ["run"] else ""),
        file=sys.stderr,
        flush=True,
    )
    return EXIT_INTERNAL


def _click_message(error: click.ClickException) -> str:
    """Return one line: what was wrong and the next command."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "keystone-mpi"
    if isinstance(error, click.UsageError) and "`" not in message:
        return f"{message.rstrip('.')} (see `{path} --help`)"
    return message
