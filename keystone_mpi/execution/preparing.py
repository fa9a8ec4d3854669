"""Preparing a worker for a recipe: its setup lines, its solver, what starts its ranks. Once, before any task.

Rule: a recipe that cannot run here is told with its output, and nothing of it
is started. The lines are run by a login-like bash, whose environment is kept.

    scrubbed environment --(bash -l: setup lines; env -0)--> environment of every solver
    check, or the program looked up --> missing: how to install it
    mpiexec | srun --(mpi_launch)--> RankLauncher
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from keystone_mpi.execution.environment import launcher_environment
from keystone_mpi.execution.mpi_launch import NoLauncherError, RankLauncher, find_rank_launcher
from keystone_mpi.execution.slot_messages import Preparation, RecipePrepared

SETUP_S = 600.0
"""Modules and conda environments come over slow, crowded file systems."""
_OUTPUT_BYTES = 1 << 14
_NOT_KEPT = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "KEYSTONE_OUTER_PATH"})

# PATH: profiles like to set it anew, and what was first before must stay first.
_SCRIPT = r"""
PATH="$KEYSTONE_OUTER_PATH${PATH:+:$PATH}"; export PATH; unset KEYSTONE_OUTER_PATH
__keystone_env=$1; shift
for __keystone_line in "$@"; do
    eval "$__keystone_line" || {
        __keystone_code=$?
        echo "setup line failed (exit code $__keystone_code): $__keystone_line" >&2
        exit $__keystone_code
    }
done
unset __keystone_line
exec "$__keystone_env" -0 >&3
"""


def prepare_worker(
    wanted: Preparation, base_env: Mapping[bytes, bytes], abandoned: Callable[[], bool] = lambda: False
) -> RecipePrepared:
    """Do it; takes as long as the setup lines take.

    Parameters
    ----------
    wanted : Preparation
        What to do.
    base_env : mapping of bytes
        The scrubbed environment.
    abandoned : callable
        Asked now and then whether anybody still waits; True: nobody does, and it is broken off.
    """
    unset = {os.fsencode(name) for name in wanted.unset}
    env = {os.fsdecode(name): os.fsdecode(value) for name, value in base_env.items() if name not in unset}
    if wanted.setup:
        env, error = run_setup(wanted.setup, env, wanted.cwd, wanted.tags, abandoned)
        error = error or _missing(wanted, env)
        if error:
            return RecipePrepared(wanted.recipe, error)
    launcher = RankLauncher(())
    if wanted.launcher:
        if wanted.launcher == "srun":
            # Set by the scrub for solvers that call MPI_Init alone; a step wants the cluster's default.
            env.pop("SLURM_MPI_TYPE", None)
        try:
            launcher = find_rank_launcher(
                wanted.launcher,
                wanted.launcher_path,
                wanted.launcher_flags,
                wanted.threads,
                wanted.mpi_program,
                env,
                whole_allocation=launcher_environment().launcher is None,
            )
        except NoLauncherError as problem:
            return RecipePrepared(wanted.recipe, str(problem))
    return RecipePrepared(
        wanted.recipe,
        env={os.fsencode(name): os.fsencode(value) for name, value in env.items()},
        launcher=launcher.argv,
        rewrites_arguments=launcher.rewrites_arguments,
    )


def _missing(wanted: Preparation, env: Mapping[str, str]) -> str:
    """Say what the setup did not bring; empty when all is there."""
    hint = f" ({wanted.check_hint})" if wanted.check_hint else ""
    if wanted.program and shutil.which(wanted.program, path=env.get("PATH", os.defpath)) is None:
        return f"after the setup {wanted.program!r} is not on PATH{hint}"
    if not wanted.check:
        return ""
    try:
        done = subprocess.run(
            wanted.check,
            env={**env, **wanted.tags},
            cwd=wanted.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SETUP_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"after the setup the solver was not found: {problem}{hint}"
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip()
        shown = shlex.join(wanted.check) if len(wanted.check) < 3 else wanted.check[0]
        return f"after the setup the solver was not found by {shown}{': ' + said if said else ''}{hint}"
    return ""


def run_setup(
    lines: tuple[str, ...],
    env: Mapping[str, str],
    cwd: str,
    tags: Mapping[str, str],
    abandoned: Callable[[], bool],
) -> tuple[dict[str, str], str]:
    """Run setup lines in a login-like bash; return the environment that they leave, or why they failed."""
    bash = shutil.which("bash", path=env.get("PATH", os.defpath)) or "/bin/bash"
    printer = shutil.which("env", path=env.get("PATH", os.defpath)) or "/usr/bin/env"
    env_read, env_write = os.pipe()
    out_read, out_write = os.pipe()
    try:
        process = subprocess.Popen(
            [bash, "-l", "-c", f"exec 3>&{env_write} {env_write}>&-\n{_SCRIPT}", "setup", printer, *lines],
            env={**env, **tags, "KEYSTONE_OUTER_PATH": env.get("PATH", os.defpath)},
            cwd=cwd or "/",
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=out_write,
            pass_fds=(env_write,),
            start_new_session=True,
        )
    except OSError as problem:
        os.close(env_read)
        os.close(out_read)
        return {}, f"the setup could not be started: {bash}: {problem.strerror}"
    finally:
        os.close(env_write)
        os.close(out_write)
    try:
        left, output, problem_text = _listen(process, env_read, out_read, abandoned)
    finally:
        os.close(env_read)
        os.close(out_read)
    code = process.wait()
    said = output.decode("utf-8", "replace").strip()
    if not problem_text and code:
        problem_text = f"exit code {code}" if code > 0 else f"signal {-code}"
    if not problem_text and b"PATH=" not in left:
        problem_text = "it ended before its last line (exit?)"
    if problem_text:
        return {}, f"the setup failed: {problem_text}\n{said}".rstrip()
    pairs = (item.partition("=") for item in left.decode("utf-8", "surrogateescape").split("\0") if item)
    found = {name: value for name, _, value in pairs if name not in _NOT_KEPT and name not in tags}
    return found, ""


def _listen(
    process: subprocess.Popen[bytes], env_fd: int, out_fd: int, abandoned: Callable[[], bool]
) -> tuple[bytes, bytearray, str]:
    """Read both pipes until the setup has ended; a background process that holds them is not waited for."""
    left = bytearray()
    output = bytearray()
    poller = select.poll()
    poller.register(env_fd, select.POLLIN)
    poller.register(out_fd, select.POLLIN)
    deadline = time.monotonic() + SETUP_S
    open_fds = {env_fd, out_fd}
    trouble = ""
    while open_fds:
        ended = process.poll() is not None
        for fd, _ in poller.poll(0 if ended else 100):
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                poller.unregister(fd)
                open_fds.discard(fd)
            elif fd == env_fd:
                left += chunk
            else:
                output += chunk
                del output[:-_OUTPUT_BYTES]
            ended = False
        if ended:
            break
        if time.monotonic() > deadline or abandoned():
            trouble = f"no end after {SETUP_S:g} s"
            os.killpg(process.pid, signal.SIGKILL)
            break
    return bytes(left), output, trouble
