"""Job scripts as text.

Rule: pure. The same request gives the same text, every word that comes from a
user is quoted, and the script is complete in itself: submitting it again, by
hand, does the same thing again, which is to continue.

    JobRequest --job_script--> #SBATCH lines, setup, launch, what to do with the exit code
               --merge_script--> the small job that merges an array
"""

from __future__ import annotations

import shlex

import msgspec

from keystone_mpi.core.errors import UserError
from keystone_mpi.slurm.walltime import slurm_time, warning_s

MARK = "# Written by keystone-mpi submit"
"""Second line of every script of ours: such a file may be written anew."""
MERGE_TIME_S = 3600.0


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a job script depends on."""

    name: str
    program: str
    """Absolute path of keystone-mpi."""
    folder: str
    """Where the job runs; absolute."""
    script: str
    """Path of the script itself, for the requeue."""
    sweep: str
    """The sweep file, as seen from `folder`."""
    output: str
    """The results file, as seen from `folder`."""
    launcher: str
    """Such as ``srun --mpi=pmi2``; may hold {ranks}, {nodes}, {ranks_per_node}."""
    nodes: int = 1
    ranks_per_node: int = 1
    cores_per_node: int = 0
    """0: whole nodes."""
    time_s: float = 0.0
    """0: the partition's default."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    memory: str = ""
    """Per node, as Slurm reads it."""
    gpus_per_node: int = 0
    array: int = 0
    """Elements; 0: no array."""
    at_once: int = 0
    """Elements that may run at the same time; 0: all."""
    requeue: bool = False
    setup: tuple[str, ...] = ()
    """Shell lines before the launch: modules, environments."""
    run_options: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Further sbatch options, after ours, so that they win."""


def job_script(request: JobRequest) -> str:
    """Return the script of the job, or of each element of the array."""
    lines = ["#!/bin/bash", f"{MARK}; submit it again to continue: sbatch {shlex.quote(request.script)}"]
    lines += [f"#SBATCH {option}" for option in _options(request)]
    lines += ["", "set -u"]
    lines += request.setup
    if request.requeue:
        lines += ["", *_progress_lines(request)]
    lines += ["", *_launch_lines(request)]
    lines += ["", *(_requeue_lines(request) if request.requeue else ["exit $code"])]
    return "\n".join(lines) + "\n"


def merge_script(request: JobRequest) -> str:
    """Return the script of the job that merges what the array wrote; it may run any number of times."""
    options = [
        f"--job-name={_word(request.name)}-merge",
        "--nodes=1",
        "--ntasks=1",
        f"--time={slurm_time(MERGE_TIME_S)}",
        f"--chdir={_word(request.folder)}",
        f"--output={_word(_log(request, '-merge.%j'))}",
        "--open-mode=append",
        *_places(request),
        *(option for option in request.options if not _is_size(option)),
    ]
    lines = ["#!/bin/bash", f"{MARK}; merges what is there, again and again: sbatch {_merge_name(request)}"]
    lines += [f"#SBATCH {option}" for option in options]
    lines += ["", "set -u", *request.setup, ""]
    lines += [f"{shlex.join([request.program, 'merge', request.output, '--shards', str(request.array)])}"]
    return "\n".join(lines) + "\n"


def _merge_name(request: JobRequest) -> str:
    return shlex.quote(request.script.removesuffix(".job.sh") + ".merge.sh")


def _options(request: JobRequest) -> list[str]:
    options = [f"--job-name={_word(request.name)}", f"--nodes={request.nodes}"]
    options.append(f"--ntasks-per-node={request.ranks_per_node}")
    if request.cores_per_node:
        options.append(f"--cpus-per-task={-(-request.cores_per_node // request.ranks_per_node)}")
    else:
        options.append("--exclusive")
    if request.time_s:
        options.append(f"--time={slurm_time(request.time_s)}")
        warning = warning_s(request.time_s)
        if warning:
            # To the steps under srun; an mpiexec gets it from the batch script.
            options.append(f"--signal={'' if _is_srun(request) else 'B:'}USR1@{warning}")
    options += _places(request)
    if request.memory:
        options.append(f"--mem={_word(request.memory)}")
    if request.gpus_per_node:
        options.append(f"--gpus-per-node={request.gpus_per_node}")
    if request.array:
        at_once = f"%{request.at_once}" if request.at_once else ""
        options.append(f"--array=1-{request.array}{at_once}")
    options.append("--requeue" if request.requeue else "--no-requeue")
    options.append(f"--chdir={_word(request.folder)}")
    options.append(f"--output={_word(_log(request, '.%A_%a' if request.array else '.%j'))}")
    options.append("--open-mode=append")
    return [*options, *request.options]


def _places(request: JobRequest) -> list[str]:
    names = ("partition", "account", "qos", "constraint", "reservation")
    return [f"--{name}={_word(getattr(request, name))}" for name in names if getattr(request, name)]


def _is_size(option: str) -> bool:
    """Tell whether an option of the user's is about how large or long the job is."""
    return option.startswith(
        ("--nodes", "-N", "--ntasks", "-n", "--time", "-t", "--mem", "--cpus", "-c", "--gpus", "--gres",
         "--exclusive", "--array", "-a", "--signal", "--requeue", "--output", "-o")
    )  # fmt: skip


def _log(request: JobRequest, number: str) -> str:
    return f"{request.output.removesuffix('.h5')}{number}.log"


def _word(text: str) -> str:
    """Quote a value for an #SBATCH line, which knows double quotes only."""
    if any(character in text for character in '"\n\\'):
        raise UserError(f"{text!r} cannot be written in a job script: no quotes, backslashes or line breaks")
    return f'"{text}"' if any(character in text for character in " \t'#") else text


def _is_srun(request: JobRequest) -> bool:
    return request.launcher.split()[0].rpartition("/")[2] == "srun"


def launch_line(request: JobRequest) -> str:
    """Return the launcher with all its options."""
    values = {
        "ranks": request.nodes * request.ranks_per_node,
        "nodes": request.nodes,
        "ranks_per_node": request.ranks_per_node,
    }
    launcher = request.launcher
    for name, value in values.items():
        launcher = launcher.replace(f"{{{name}}}", str(value))
    if not _is_srun(request):
        return launcher
    # After a node was lost a plain srun would wait for nodes that the job no longer has.
    parts = [launcher]
    if "--kill-on-bad-exit" not in launcher:
        parts.append("--kill-on-bad-exit=1")
    if request.cores_per_node and "--cpus-per-task" not in launcher:
        parts.append('--cpus-per-task="$SLURM_CPUS_PER_TASK"')  # srun no longer takes it from the job
    if request.ranks_per_node == 1 and "--cpu-bind" not in launcher:
        parts.append("--cpu-bind=none")  # the rank's tasks use all cores of the node
    return " ".join(parts)


def _launch_lines(request: JobRequest) -> list[str]:
    run = [request.program, "run", request.sweep, "--output", request.output, *request.run_options]
    command = shlex.join(run)
    if request.array:
        command += f' --shard "$SLURM_ARRAY_TASK_ID/{request.array}"'
    lines = [f"{launch_line(request)} \\", f"    {command}"]
    if _is_srun(request) or not (request.time_s and warning_s(request.time_s)):
        return [*lines, "code=$?"]
    return [
        f"{lines[0]}",
        f"{lines[1]} &",
        "job=$!",
        "trap 'kill -USR1 \"$job\" 2>/dev/null' USR1   # the warning before the end: what runs is finished",
        'wait "$job"',
        "code=$?",
        'while kill -0 "$job" 2>/dev/null; do   # a signal ends `wait` early',
        '    wait "$job"',
        "    code=$?",
        "done",
    ]


def _progress_lines(request: JobRequest) -> list[str]:
    output = request.output
    if request.array:
        stem = output.removesuffix(".h5")
        own = f'{shlex.quote(f"{stem}.shard-")}"$SLURM_ARRAY_TASK_ID"-of-{request.array}.h5'
    else:
        own = shlex.quote(output)
    return [
        "ended() {   # how many tasks have ended so far",
        f"    {shlex.quote(request.program)} status --json {own} 2>/dev/null |",
        """        awk -F'[:,]' '/^  "(completed|failed)"/ { n += $2 } END { print n + 0 }'""",
        "}",
        "before=$(ended)",
    ]


def _requeue_lines(request: JobRequest) -> list[str]:
    again = 'scontrol requeue "$SLURM_JOB_ID"'
    if not request.array:
        again += f" || sbatch {shlex.quote(request.script)}"
    return [
        "case $code in",
        "0 | 1 | 2 | 70) exit $code ;;   # all done, or nothing that another start would mend",
        "esac",
        "after=$(ended)",
        'if [ "$after" -gt "$before" ]; then',
        '    echo "stopped with work left ($before tasks had ended before, $after now): again"',
        f"    {again}",
        "else",
        '    echo "stopped with work left, and no task ended in this round: not again" >&2',
        "fi",
        "exit $code",
    ]
