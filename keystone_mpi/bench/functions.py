"""How fast Python functions are called: the executor beside mpi4py.futures and the standard pool.

Rule: one and the same program runs under every contender, which differ in the
line that makes the pool only. It times itself, so that start-up does not count,
and says one JSON line. Contenders take turns in every round; medians are said.

    submit     10,000 no-op calls one by one, then all their results    calls/s
    dependent  submit, wait for the result, submit the next             calls/s
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from keystone_mpi.bench.contenders import mpiexec_path
from keystone_mpi.bench.measure import LIMIT_S, end_session, environment
from keystone_mpi.core.errors import ClusterError

CALLS = 10_000
DEPENDENT_CALLS = 1_000
WORKERS = 2

PROGRAM = """
import json, sys, time
{make}

def noop(x):
    return x

def measure(pool, calls, dependent):
    list(pool.map(noop, range(200), chunksize=1))
    began = time.perf_counter()
    futures = [pool.submit(noop, k) for k in range(calls)]
    results = [future.result() for future in futures]
    submit_s = time.perf_counter() - began
    assert results == list(range(calls))
    began = time.perf_counter()
    for k in range(dependent):
        pool.submit(noop, k).result()
    return calls / submit_s, dependent / (time.perf_counter() - began)

if __name__ == "__main__":
    with make_pool() as pool:
        submit, dependent = measure(pool, int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({{"submit_per_s": submit, "dependent_per_s": dependent}}))
"""

KEYSTONE = f"from keystone_mpi import KeystoneExecutor\ndef make_pool(): return KeystoneExecutor({WORKERS})"
MPI4PY = "from mpi4py.futures import MPIPoolExecutor\ndef make_pool(): return MPIPoolExecutor()"
STANDARD = (
    "from concurrent.futures import ProcessPoolExecutor\n"
    f"def make_pool(): return ProcessPoolExecutor({WORKERS})"
)


class CallRate(msgspec.Struct, frozen=True):
    """What was measured of one contender."""

    name: str
    submit_per_s: float = 0.0
    dependent_per_s: float = 0.0
    problem: str = ""


class _Sample(msgspec.Struct):
    submit_per_s: float
    dependent_per_s: float


def measure_functions(
    *,
    calls: int = CALLS,
    dependent: int = DEPENDENT_CALLS,
    rounds: int,
    scratch: Path,
    say: Callable[[str], None],
) -> list[CallRate]:
    """Measure all contenders, interleaved; the executor under mpiexec comes first.

    Parameters
    ----------
    calls, dependent : int
        How many calls of each kind.
    rounds : int
        How often; medians are returned.
    scratch : Path
        Every run gets a fresh folder in it.
    say : callable
        Told what is being done.
    """
    mpiexec = mpiexec_path()
    ranks = [mpiexec, "-n", str(WORKERS + 1), sys.executable]
    contenders: list[tuple[str, str, list[str]]] = []
    if mpiexec:
        contenders += [
            (f"mpiexec -n {WORKERS + 1}, KeystoneExecutor", KEYSTONE, [*ranks, "-m", "keystone_mpi"]),
            (f"mpiexec -n {WORKERS + 1}, mpi4py.futures", MPI4PY, [*ranks, "-m", "mpi4py.futures"]),
        ]
    contenders += [
        ("KeystoneExecutor alone", KEYSTONE, [sys.executable]),
        ("ProcessPoolExecutor", STANDARD, [sys.executable]),
    ]
    samples: dict[str, list[_Sample]] = {name: [] for name, *_ in contenders}
    problems: dict[str, str] = {}
    for number in range(rounds):
        for name, make, argv in contenders:
            if name in problems:
                continue
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                samples[name].append(_run(make, argv, calls, dependent, scratch))
            except ClusterError as error:
                problems[name] = str(error)
    return [
        CallRate(name, problem=problems[name])
        if name in problems
        else CallRate(
            name,
            statistics.median(sample.submit_per_s for sample in samples[name]),
            statistics.median(sample.dependent_per_s for sample in samples[name]),
        )
        for name, *_ in contenders
    ]


def _run(make: str, argv: Sequence[str], calls: int, dependent: int, scratch: Path) -> _Sample:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    program = folder / "calls.py"
    program.write_text(PROGRAM.format(make=make))
    process = subprocess.Popen(
        [*argv, str(program), str(calls), str(dependent)],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"no end within {LIMIT_S:.0f} s") from None
    finally:
        end_session(process)
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    if process.returncode or not lines:
        said = errors.decode(errors="replace").strip().splitlines()
        raise ClusterError(f"exit code {process.returncode}: {said[-1][:200] if said else 'it said nothing'}")
    return msgspec.json.decode(lines[-1], type=_Sample)
