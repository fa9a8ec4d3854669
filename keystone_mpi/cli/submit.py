"""``keystone-mpi submit``: a job script for Slurm, written beside the results and submitted.

Rule: whatever can be refused is refused before a file is written; the sweep is
read here, on the login node, so that its mistakes do not wait in the queue.

    FILE, options --> JobSettings over [slurm] over site profile --> NAME.job.sh --> job id
    --array N     --> the shards are dealt now; NAME.merge.sh runs when the array has ended
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.core.errors import UserError

if TYPE_CHECKING:
    from keystone_mpi.slurm.script import JobRequest


@click.command("submit")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("sbatch_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SBATCH OPTIONS]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file  [default: NAME.h5 here]")
@click.option("--nodes", type=click.IntRange(1), help="Nodes (of each element of an array)  [default: 1]")
@click.option("--time", "time", metavar="TIME", help="2h, 90min, 1-12:00:00  [default: the partition's]")
@click.option("--array", metavar="N[%M]", help="N elements, each running a share; M of them at a time.")
@click.option("--partition", metavar="NAME")
@click.option("--account", metavar="NAME")
@click.option("--qos", metavar="NAME")
@click.option("--constraint", metavar="FEATURES")
@click.option("--reservation", metavar="NAME")
@click.option("--memory", metavar="SIZE", help="Per node, as sbatch --mem reads it.")
@click.option("--cores", "cores_per_node", type=click.IntRange(1), help="Per node  [default: whole nodes]")
@click.option("--gpus-per-node", type=click.IntRange(0))
@click.option(
    "--ranks-per-node", type=click.IntRange(1), help="[default: 1, whose slots are the node's cores]"
)
@click.option("--launcher", metavar="LINE", help="srun, mpiexec, or a whole line  [default: srun]")
@click.option("--requeue", is_flag=True, help="Start again until all is done, or a round brings nothing.")
@click.option("--retry-failed", is_flag=True, help="As for run.")
@click.option("--accept-changed", is_flag=True, help="As for run.")
@click.option("--slots", type=click.IntRange(1), help="As for run.")
@click.option("--smt", is_flag=True, help="As for run.")
@click.option("--dry-run", is_flag=True, help="Print the scripts; write nothing, submit nothing.")
def command(
    file: Path,
    sbatch_options: tuple[str, ...],
    output: Path | None,
    time: str | None,
    array: str | None,
    launcher: str | None,
    requeue: bool,
    retry_failed: bool,
    accept_changed: bool,
    slots: int | None,
    smt: bool,
    dry_run: bool,
    **chosen: int | str | None,
) -> int:
    """Submit FILE to Slurm, as `run` would run it.

    \b
    keystone-mpi submit sweep.toml --nodes 4 --time 2h
    keystone-mpi submit sweep.toml --time 30min --array 10 -- --exclude=node7

    The same command again continues. Settings of the sweep file's [slurm] table and
    of the site profile (~/.config/keystone-mpi.toml) hold where nothing is said here.
    """
    from keystone_mpi.engine.session import SessionOptions, plan_only
    from keystone_mpi.slurm import profile, script, submit
    from keystone_mpi.slurm.dealing import hold_deal
    from keystone_mpi.slurm.walltime import parse_limit
    from keystone_mpi.sweeps.load import load_sweep

    sweep = load_sweep(file, start_dir=Path.cwd())
    for warning in sweep.warnings:
        click.echo(f"keystone-mpi: warning: {file}: {warning}", err=True)
    output_path = Path.cwd() / (output or f"{sweep.name}.h5")
    settings = profile.JobSettings(
        **chosen,  # type: ignore[arg-type] # click has checked them
        time_s=None if time is None else parse_limit(time, "--time"),
        launcher=launcher,
        options=_joined_options(sbatch_options),
    )
    settings = settings.over(profile.load_sweep_settings(file)).over(profile.load_profile())
    count, at_once = _parse_array(array)
    whole = SessionOptions(output_path=output_path, retry_failed=retry_failed, accept_changed=accept_changed)
    plan = plan_only(sweep, whole)
    if not plan.to_run:
        done = wording.count(plan.task_count, "task")
        click.echo(f"{sweep.name}: nothing to do: all {done} of {wording.path(output_path)} are done")
        return EXIT_OK
    request = submit.make_request(
        settings,
        name=sweep.name,
        sweep_path=Path.cwd() / file,
        output_path=output_path,
        launcher=submit.choose_launcher(settings.launcher),
        array=count,
        at_once=at_once,
        requeue=requeue,
        run_options=_run_options(retry_failed, accept_changed, slots, smt),
    )
    texts = [script.job_script(request), *([script.merge_script(request)] if count else [])]
    if dry_run:
        click.echo("\n".join(texts), nl=False)
        return EXIT_OK
    if count:
        submit.check_array(count)
        hold_deal(sweep, whole, count)
    submit.write_script(submit.script_path(output_path), texts[0])
    if count:
        submit.write_script(submit.merge_script_path(output_path), texts[1])
    job_id = submit.submit(submit.script_path(output_path))
    merge_id = ""
    if count:
        merge_id = submit.submit(
            submit.merge_script_path(output_path),
            f"--dependency=afterany:{job_id}",
            "--kill-on-invalid-dep=yes",
        )
    for line in submitted_lines(request, plan.to_run, job_id, merge_id):
        click.echo(line)
    return EXIT_OK


def _joined_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """Put ``-p debug`` and ``--partition debug`` on one line each, as #SBATCH wants them."""
    lines: list[str] = []
    for word in options:
        if word.startswith("-"):
            lines.append(word)
        elif lines and " " not in lines[-1] and "=" not in lines[-1]:
            lines[-1] += f" {word}"
        else:
            raise UserError(f"after --: {word!r} belongs to no option of sbatch")
    return tuple(lines)


def _parse_array(text: str | None) -> tuple[int, int]:
    """Read ``10`` or ``10%4``: elements, and how many of them at a time (0: all)."""
    if text is None:
        return 0, 0
    found = re.fullmatch(r"\s*(\d+)\s*(?:%\s*(\d+)\s*)?", text)
    if found is None or not int(found.group(1)) or found.group(2) == "0":
        raise UserError(f"--array: found {text!r}; allowed is a number of elements, or 10%4: four at a time")
    return int(found.group(1)), int(found.group(2) or 0)


def _run_options(retry_failed: bool, accept_changed: bool, slots: int | None, smt: bool) -> tuple[str, ...]:
    options = ["--retry-failed"] * retry_failed + ["--accept-changed"] * accept_changed
    options += [] if slots is None else ["--slots", str(slots)]
    return (*options, *(["--smt"] * smt))


def submitted_lines(request: JobRequest, to_run: int, job_id: str, merge_id: str) -> list[str]:
    """Say what was submitted and how to watch it."""
    tasks = wording.count(to_run, "task")
    stem = request.output.removesuffix(".h5")
    size = wording.count(request.nodes, "node")
    if not merge_id:
        return [
            f"submitted job {job_id}: {tasks} on {size} ({request.script})",
            f"  watch:  squeue -j {job_id}",
            f"          {wording.command('keystone-mpi', 'status', request.output)}",
            f"          tail -F {shlex.quote(f'{stem}.{job_id}.log')}",
            f"  stop:   {wording.command('keystone-mpi', 'drain', request.output)}",
        ]
    elements = wording.count(request.array, "element")
    return [
        f"submitted job {job_id}: {tasks} in {elements} of {size} each ({request.script})",
        f"submitted job {merge_id}: merges them into {request.output} afterwards",
        f"  watch:  squeue -j {job_id},{merge_id}",
        f"          {wording.command('keystone-mpi', 'status', f'{stem}.shard-1-of-{request.array}.h5')}",
        f"          tail -F {shlex.quote(f'{stem}.{job_id}_1.log')}",
        f"  merge:  {wording.command('keystone-mpi', 'merge', request.output)}   (at any time, and again)",
    ]
