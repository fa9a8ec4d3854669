"""``keystone-mpi run``: run a sweep file or a task file, or continue it.

Rule: everything that is wrong with the input is said in one line before any
task runs; the exit code alone tells a job script what to do next.

    FILE --load_sweep--> Sweep --run_sweep--> RunClosing --> 0 | 1 | 75
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystone_mpi.allocation_end import deadline_before, end_of_work, watch_of_end
from keystone_mpi.cli import wording
from keystone_mpi.cli.main import EXIT_AGAIN, EXIT_OK
from keystone_mpi.cli.progress import make_observer
from keystone_mpi.cli.telling import PatientObserver
from keystone_mpi.core.errors import UserError

if TYPE_CHECKING:
    from keystone_mpi.engine.observer import RunClosing
    from keystone_mpi.engine.plan import RunPlan
    from keystone_mpi.engine.ranks import Ranks
    from keystone_mpi.engine.session import SessionOptions
    from keystone_mpi.engine.stopping import Deadline
    from keystone_mpi.sweeps.sweep import Sweep

EXIT_SOME_FAILED = 1
PREVIEW_TASKS = 5


class AllowedFailures(click.ParamType[tuple[float, bool]]):
    """``5%`` or a count."""

    name = "COUNT|PERCENT%"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, bool]:
        """Return (number, is percentage)."""
        text = str(value).strip()
        percent = text.endswith("%")
        try:
            number = float(text[:-1]) if percent else float(int(text))
        except ValueError:
            number = -1.0
        if number < 0 or (percent and number > 100):
            self.fail(f"{text!r} is neither a count nor a percentage such as 5%", param, ctx)
        return number, percent


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file  [default: NAME.h5 here]")
@click.option("--resume", is_flag=True, help="Continue; refuse when there is nothing to continue.")
@click.option("--retry-failed", is_flag=True, help="Also run again what did not succeed.")
@click.option("--fresh", is_flag=True, help="Move an existing results file aside and start over.")
@click.option("--accept-changed", is_flag=True, help="Continue although command or script have changed.")
@click.option("--dry-run", is_flag=True, help="Show what would run; run nothing, write nothing.")
@click.option("--slots", type=click.IntRange(1), help="Slots per node  [default: its physical cores]")
@click.option("--smt", is_flag=True, help="Count hardware threads as slots, too.")
@click.option("--walltime", metavar="TIME", help="Be done after so long  [default: Slurm's own figure]")
@click.option("--shard", metavar="I/N", help="Run only part I of N, into NAME.shard-I-of-N.h5 (job arrays).")
@click.option("--allow-failures", type=AllowedFailures(), help="Exit 0 with up to so many failed tasks.")
@click.option("-q", "--quiet", is_flag=True, help="Say only notices and the end.")
@click.pass_obj
def command(
    ranks: Ranks | None,
    file: Path,
    output: Path | None,
    resume: bool,
    retry_failed: bool,
    fresh: bool,
    accept_changed: bool,
    dry_run: bool,
    slots: int | None,
    smt: bool,
    walltime: str | None,
    shard: str | None,
    allow_failures: tuple[float, bool] | None,
    quiet: bool,
) -> int:
    """Run FILE, or continue it: a sweep (.toml, .json) or a task file (a shell line per task).

    \b
    mpiexec -n 4 keystone-mpi run sweep.toml     workers are ranks 1 to 3
    keystone-mpi run sweep.toml                  local slots, no MPI needed

    The same command again runs only what is missing.
    """
    from keystone_mpi.engine.session import SessionOptions, plan_only
    from keystone_mpi.slurm.allocation import job_is_gone
    from keystone_mpi.sweeps.load import load_sweep

    if fresh and resume:
        raise click.UsageError("--fresh and --resume exclude each other")
    sweep = load_sweep(file, start_dir=Path.cwd())
    for warning in sweep.warnings:
        click.echo(f"keystone-mpi: warning: {file}: {warning}", err=True)
    session = SessionOptions(
        output_path=Path.cwd() / (output or f"{sweep.name}.h5"),
        retry_failed=retry_failed,
        accept_changed=accept_changed,
        fresh=fresh,
        resume=resume,
        is_gone=job_is_gone,
    )
    ends_at = end_of_work(walltime, "--walltime")
    if shard is not None:
        session = _session_of_shard(sweep, session, shard, write=not dry_run)
    if dry_run:
        _show_plan(sweep, plan_only(sweep, session), session.output_path, slots=slots, smt=smt)
        return EXIT_OK
    from keystone_mpi.engine.bringing_up import bring_up
    from keystone_mpi.engine.run import RunOptions, run_sweep
    from keystone_mpi.execution.environment import launcher_environment

    workers = ranks or bring_up(launcher_environment())
    observer = PatientObserver(make_observer(quiet=quiet))
    try:
        deadline = deadline_before(ends_at, sweep.recipe.grace_s)
        if deadline is not None and ends_at is not None and not quiet:
            observer.notice(f"the allocation {_ends(ends_at, deadline)}")
        options = RunOptions(
            session=session,
            slots_per_node=slots,
            smt=smt,
            command_line=list(sys.argv),
            deadline=deadline,
            in_batch_job="SLURM_JOB_ID" in os.environ,
            end_watch=watch_of_end(ends_at, walltime, sweep.recipe.grace_s, _ends),
        )
        closing = run_sweep(sweep, options, observer, workers)
    finally:
        # The workers first: saying the rest takes as long as a terminal is stopped.
        workers.close()
        observer.close()
    if closing.refusal:
        raise UserError(f"{file}: the sweep cannot run here: {closing.refusal.splitlines()[0]}")
    return exit_code(closing, allow_failures)


def _ends(ends_at: float, deadline: Deadline) -> str:
    """Say when the allocation ends and what that means."""
    left_s = ends_at - time.time()
    work_s = deadline.stop_at - time.monotonic()
    return (
        f"ends in {wording.duration(left_s)}: only what is expected to end within "
        f"{wording.duration(work_s)} is started"
    )


def _session_of_shard(sweep: Sweep, whole: SessionOptions, text: str, *, write: bool) -> SessionOptions:
    """Return the session of one element of an array."""
    import msgspec

    from keystone_mpi.slurm.arrays import parse_shard, shard_path
    from keystone_mpi.slurm.dealing import part_of

    shard = parse_shard(text)
    part = part_of(sweep, whole, shard, write=write)
    return msgspec.structs.replace(
        whole,
        output_path=shard_path(whole.output_path, shard),
        points=part.points,
        whole_rows=part.whole_rows,
    )


def exit_code(closing: RunClosing, allowed: tuple[float, bool] | None) -> int:
    """Return what a job script needs to know.

    Parameters
    ----------
    closing : RunClosing
        How the run ended.
    allowed : (number, is percentage) or None
        Failures that are not worth a 1.
    """
    if closing.pending or closing.file_problem or closing.state != "complete":
        return EXIT_AGAIN
    number, percent = allowed or (0.0, False)
    limit = number / 100.0 * closing.total if percent else number
    return EXIT_OK if closing.failed <= limit else EXIT_SOME_FAILED


def _show_plan(sweep: Sweep, plan: RunPlan, output_path: Path, *, slots: int | None, smt: bool) -> None:
    from keystone_mpi.execution.environment import launcher_environment
    from keystone_mpi.execution.slots import detect
    from keystone_mpi.sweeps.sweep import preview

    resources = detect(smt=smt)
    here = slots if slots is not None else len(resources.cpus)
    done = plan.task_count - plan.to_run
    click.echo(f"{sweep.name}: {plan.task_count:,} tasks, {plan.to_run:,} to run, {done:,} done")
    click.echo(f"results: {os.path.relpath(output_path)}" + (" (exists)" if output_path.exists() else ""))
    origin = "--slots" if slots is not None else resources.source
    ranks = launcher_environment().size
    click.echo(f"slots: {here} on this node ({origin})" + (f", {ranks} ranks" if ranks > 1 else ""))
    for task_id, argv in preview(sweep, PREVIEW_TASKS):
        click.echo(f"  task {task_id}: {shlex.join(argv)}")
    if len(sweep) > PREVIEW_TASKS:
        click.echo(f"  ... and {len(sweep) - PREVIEW_TASKS:,} more")
