"""What the runner is measured against, and the runner itself, as commands.

Rule: everybody runs the very same program the same number of times with the
same number of them at once. The floor does nothing else: a C loop around
posix_spawn, or, where there is no compiler, the same loop in Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from keystone_mpi.bench.measure import Contender

FLOOR_SOURCE = r"""
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

/* floor COUNT SLOTS NUMBERED PROGRAM [ARGUMENT]: keep SLOTS of them running until COUNT have ended.
   NUMBERED 1: each gets its number as last argument. */
int main(int argc, char **argv) {
    if (argc < 5) return 2;
    long count = atol(argv[1]), slots = atol(argv[2]), started = 0, ended = 0;
    char number[32], **words = calloc(argc, sizeof *words);
    if (!words) return 1;
    memcpy(words, argv + 4, (argc - 4) * sizeof *words);
    if (atol(argv[3])) words[argc - 4] = number;
    while (ended < count) {
        while (started < count && started - ended < slots) {
            pid_t pid;
            snprintf(number, sizeof number, "%ld", started);
            int error = posix_spawn(&pid, words[0], NULL, NULL, words, environ);
            if (error) { fprintf(stderr, "%s: %s\n", words[0], strerror(error)); return 1; }
            started++;
        }
        int status;
        if (wait(&status) < 0) return 1;
        if (status) return 1;
        ended++;
    }
    return 0;
}
"""

FLOOR_PYTHON = """
import os, sys
count, slots, numbered, argv = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
started = ended = 0
while ended < count:
    while started < count and started - ended < slots:
        os.posix_spawn(argv[0], [*argv, str(started)] if numbered else argv, os.environ)
        started += 1
    _, status = os.wait()
    if status:
        sys.exit(1)
    ended += 1
"""

FUTURES_PROGRAM = """
import subprocess, sys
from mpi4py.futures import MPIPoolExecutor

def run(argv):
    return subprocess.call(argv)

if __name__ == "__main__":
    commands = ([*sys.argv[2:], str(number)] for number in range(int(sys.argv[1])))
    with MPIPoolExecutor() as pool:
        failed = sum(map(bool, pool.map(run, commands)))
    sys.exit(1 if failed else 0)
"""


def mpiexec_path() -> str:
    """Return this environment's mpiexec, or the one on PATH; empty when there is none."""
    own = Path(sys.prefix) / "bin" / "mpiexec"
    return str(own) if own.exists() else shutil.which("mpiexec") or ""


def keystone_command() -> list[str]:
    """Return how the runner is started: as users do."""
    own = Path(sys.prefix) / "bin" / "keystone-mpi"
    return [str(own)] if own.exists() else [sys.executable, "-m", "keystone_mpi"]


def build_floor(scratch: Path) -> tuple[list[str], str]:
    """Compile the floor; return how it is started and what it is called."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), "")
    source, program = scratch / "floor.c", scratch / "floor"
    source.write_text(FLOOR_SOURCE)
    if compiler:
        done = subprocess.run(
            [compiler, "-O2", "-o", str(program), str(source)], capture_output=True, check=False, timeout=120
        )
        if done.returncode == 0:
            return [str(program)], "C posix_spawn floor"
    script = scratch / "floor.py"
    script.write_text(FLOOR_PYTHON)
    return [sys.executable, "-S", "-E", str(script)], "Python posix_spawn floor (no C compiler)"


def write_sweep(folder: Path, count: int, program: list[str], *, numbered: bool) -> Path:
    """Write a sweep of `count` tasks that run `program`, with their number as last argument if `numbered`."""
    words = ", ".join(f'"{word}"' for word in [*program, *(["{n}"] if numbered else [])])
    lines = ["[sweep]", 'name = "bench"', f"command = [{words}]"]
    if numbered:
        lines += ["[params]", f"n = {{ range = [0, {count}, 1] }}"]
    else:
        lines.append(f"repeat = {count}")
    path = folder / "bench.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def all_contenders(scratch: Path, program: list[str], slots: int, *, numbered: bool) -> list[Contender]:
    """Return the floor first, then the runner under mpiexec and alone, then, if `numbered`, the others.

    xargs gives every call an argument of its own, so do all the others then: GNU's `true` takes
    longer when it has one, since it looks at the locale.
    """
    floor, floor_name = build_floor(scratch)
    mpiexec = mpiexec_path()

    def floor_command(count: int, folder: Path) -> list[str]:  # noqa: ARG001 - as the other contenders
        return [*floor, str(count), str(slots), str(int(numbered)), *program]

    def xargs_command(count: int, folder: Path) -> list[str]:
        numbers = folder / "numbers"
        numbers.write_text("".join(f"{number}\n" for number in range(count)))
        return ["xargs", "-a", str(numbers), "-P", str(slots), "-n", "1", *program]

    def futures_command(count: int, folder: Path) -> list[str]:
        script = folder / "pool.py"
        script.write_text(FUTURES_PROGRAM)
        pool = [mpiexec, "-n", str(slots + 1), sys.executable, "-m", "mpi4py.futures"]
        return [*pool, str(script), str(count), *program]

    def local_command(count: int, folder: Path) -> list[str]:
        sweep = write_sweep(folder, count, program, numbered=numbered)
        return [*keystone_command(), "run", str(sweep), "--slots", str(slots)]

    def mpi_command(count: int, folder: Path) -> list[str]:
        return [mpiexec, "-n", "2", *local_command(count, folder)]

    found = [Contender(floor_name, floor_command)]
    if mpiexec:
        found.append(Contender("mpiexec -n 2 keystone-mpi", mpi_command))
    found.append(Contender("keystone-mpi alone", local_command))
    if numbered and shutil.which("xargs"):
        found.append(Contender(f"xargs -P{slots}", xargs_command))
    if numbered and mpiexec:
        found.append(Contender("mpi4py.futures", futures_command))
    return found
