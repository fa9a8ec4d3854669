"""One attempt: how it starts, what is captured, how its end is told."""

from __future__ import annotations

import os
import shutil
import signal
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from execution_support import Bench, is_alive, slot_pids, wait_until

from keystone_mpi.core.model import Outcome, Why
from keystone_mpi.execution.launcher_client import AttemptFinished, AttemptStarted, OrdersReturned
from keystone_mpi.tools.recipe import CollectRule, Recipe


def test_success(bench: Bench) -> None:
    report = bench.run(bench.shell("echo out; echo err >&2"))
    assert report.outcome is Outcome.SUCCESS
    assert report.why is Why.NONE
    assert report.exit_code == 0
    assert (report.stdout_tail, report.stderr_tail) == ("out\n", "err\n")
    assert (report.stdout_bytes, report.stderr_bytes) == (4, 4)
    assert report.error == ""
    assert report.command == ""
    assert report.max_rss_bytes > 0
    assert 0 < report.duration_s < 30
    assert report.finished == pytest.approx(report.started + report.duration_s)


def test_exit_code(bench: Bench) -> None:
    report = bench.run(bench.shell("echo working; echo 'mesh is bad' >&2; exit 3"))
    assert report.outcome is Outcome.FAILED
    assert report.why is Why.EXIT_CODE
    assert report.exit_code == 3
    assert report.error == "exit code 3: mesh is bad"
    assert report.command.startswith("/bin/sh -c ")


def test_signal(bench: Bench) -> None:
    report = bench.run(bench.shell("kill -SEGV $$"))
    assert report.outcome is Outcome.FAILED
    assert report.why is Why.SIGNAL
    assert (report.exit_code, report.signal) == (-1, signal.SIGSEGV)
    assert "signal 11 (SIGSEGV)" in report.error


def test_kill_from_elsewhere_is_not_out_of_memory(bench: Bench) -> None:
    report = bench.run(bench.shell("kill -KILL $$"))
    assert report.outcome is Outcome.FAILED
    assert report.signal == signal.SIGKILL


def test_shell_says_command_not_found(bench: Bench) -> None:
    report = bench.run(bench.shell("no-such-command-at-all"))
    assert report.exit_code == 127
    assert "command not found" in report.error


@pytest.mark.parametrize(
    ("name", "mode", "text", "expected"),
    [
        ("no-such-program-at-all", 0, None, "no such program on PATH"),
        ("./missing", 0, None, "no such file"),
        ("./plain", 0o644, "#!/bin/sh\n", "not executable (chmod +x"),
        ("./shebangless", 0o755, "echo hello\n", "#!/bin/sh"),
        ("./orphan", 0o755, "#!/no/such/interpreter\n", "interpreter '/no/such/interpreter'"),
        ("./folder", 0, "folder", "it is a folder"),
    ],
)
def test_program_that_cannot_start(
    bench: Bench, tmp_path: Path, name: str, mode: int, text: str | None, expected: str
) -> None:
    path = tmp_path / name
    if text == "folder":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
        path.chmod(mode)
    report = bench.run(bench.order(name))
    assert report.outcome is Outcome.FAILED
    assert report.why is Why.NOT_STARTED
    assert expected in report.error
    assert "\n" not in report.error
    # The slot goes on.
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS


def test_program_on_the_solvers_own_path(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "mysolver"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    assert bench.run(bench.order("mysolver")).why is Why.NOT_STARTED
    report = bench.run(bench.order("mysolver", env={"PATH": f"{folder}:/usr/bin:/bin"}))
    assert report.stdout_tail == "mine\n"


def test_missing_folder_and_bad_argument(bench: Bench, tmp_path: Path) -> None:
    report = bench.run(bench.order("true", cwd=str(tmp_path / "nowhere")))
    assert report.why is Why.NOT_STARTED
    assert "nowhere" in report.error
    report = bench.run(bench.order("true", "a\0b"))
    assert report.why is Why.NOT_STARTED
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS


def test_stdin(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("12 34")
    assert bench.run(bench.order("cat", stdin=str(tmp_path / "input.txt"))).stdout_tail == "12 34"
    assert bench.run(bench.order("cat")).stdout_tail == ""
    report = bench.run(bench.order("cat", stdin=str(tmp_path / "missing.txt")))
    assert report.why is Why.NOT_STARTED
    assert "missing.txt" in report.error


def test_environment_of_a_solver(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PMI_RANK", "PMI_SIZE", "HYDI_CONTROL_FD", "MPI_LOCALNRANKS", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("USERS_OWN", "kept")
    bench = make_bench(worker=5)
    report = bench.run(bench.shell("env", env={"KEYSTONE_PARAMS": '{"x": 1}', "USERS_OWN2": "é"}))
    variables = dict(line.split("=", 1) for line in report.stdout_tail.splitlines() if "=" in line)
    assert not [name for name in variables if name.startswith(("PMI_", "HYDI_", "MPI_LOCAL", "SLURM_STEP"))]
    assert variables["USERS_OWN"] == "kept"
    assert variables["USERS_OWN2"] == "é"
    assert variables["KEYSTONE_RUN"] == bench.run_id
    assert variables["KEYSTONE_WORKER"] == "5"
    assert variables["KEYSTONE_PARAMS"] == '{"x": 1}'
    assert variables["KEYSTONE_RESULT"].endswith("/0-1.json")


STARTING_STATE = """
import os, signal
print(os.getsid(0) == os.getpid())
print(os.getcwd())
fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
print(sorted(map(int, fds)))
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
ignored = int(open("/proc/self/status").read().split("SigIgn:")[1].split()[0], 16)
print([number for number in range(1, 32) if ignored >> number - 1 & 1])
"""


def test_solver_starts_clean(bench: Bench, tmp_path: Path) -> None:
    lines = bench.run(bench.python(STARTING_STATE)).stdout_tail.splitlines()
    # A session of its own, three descriptors, no blocked signal; what is ignored Python itself ignores.
    assert lines == ["True", str(tmp_path), "[0, 1, 2]", "[]", f"[{signal.SIGPIPE:d}, {signal.SIGXFSZ:d}]"]


def test_pinning(bench: Bench) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    for cpus in ((allowed[-1],), tuple(allowed), (allowed[0],)):
        script = "import os; print(sorted(os.sched_getaffinity(0)))"
        report = bench.run(bench.python(script, cpus=cpus))
        assert report.stdout_tail.strip() == str(list(cpus))
        assert report.cpus == cpus


def test_huge_output_in_bounded_memory(bench: Bench) -> None:
    size = 600_000_000
    order = bench.shell(f"yes 'a line of output' | head -c {size}; printf '\\nthe end\\n'")
    bench.client.submit(0, [order])
    report = bench.report(order)
    assert report.outcome is Outcome.SUCCESS
    assert report.stdout_bytes == size + len("\nthe end\n")
    assert report.stdout_tail.endswith("\nthe end\n")
    assert len(report.stdout_tail) <= 65536
    (slot,) = slot_pids(bench.client)
    peak_kib = int(Path(f"/proc/{slot}/status").read_text().split("VmHWM:")[1].split()[0])
    assert peak_kib < 64 * 1024


def test_output_that_is_no_text(bench: Bench) -> None:
    report = bench.run(bench.shell("head -c 300000 /dev/zero; printf '\\377\\376'; exit 1"))
    assert report.stdout_bytes == 300_002
    assert "\0" not in report.stdout_tail
    assert report.stdout_tail.endswith("\u2400\ufffd\ufffd")
    report = bench.run(bench.shell("yes ü | head -c 400000; exit 1"))
    assert "\ufffd" not in report.stdout_tail.rstrip("\ufffd")


def test_blocked_pipe_left_by_the_attempt_before(bench: Bench) -> None:
    # node.js makes its pipes non-blocking; the next attempt must not notice.
    script = "import os; os.set_blocking(1, False); os.set_blocking(2, False)"
    bench.run(bench.python(script))
    report = bench.run(bench.python("import os; print(os.get_blocking(1), os.get_blocking(2))"))
    assert report.stdout_tail == "True True\n"


def test_many_quick_tasks(bench: Bench) -> None:
    orders = [bench.order("true") for _ in range(1000)]
    bench.client.submit(0, orders[:500])
    bench.client.submit(1, orders[500:])
    reports = [bench.report(order) for order in (orders[-1], orders[499])]
    assert all(report.outcome is Outcome.SUCCESS for report in reports)
    finished = [event.report for event in bench.events if isinstance(event, AttemptFinished)]
    assert sorted(report.index for report in finished) == list(range(1000))
    assert {report.outcome for report in finished} == {Outcome.SUCCESS}
    assert bench.client.outstanding(0) == bench.client.outstanding(1) == []


def test_outputs_of_queued_tasks_do_not_mix(bench: Bench) -> None:
    orders = [bench.shell(f"echo {k}; echo e{k} >&2") for k in range(40)]
    bench.client.submit(0, orders)
    for k, order in enumerate(orders):
        report = bench.report(order)
        assert (report.stdout_tail, report.stderr_tail) == (f"{k}\n", f"e{k}\n")


def test_started_is_told_of_long_attempts_only(bench: Bench) -> None:
    bench.run(bench.order("true"))
    order = bench.order("sleep", "0.6")
    bench.run(order)
    (started,) = (event for event in bench.events if isinstance(event, AttemptStarted))
    assert (started.slot, started.index, started.attempt) == (0, *order.key)


def test_recall_and_cancel(bench: Bench) -> None:
    first, second, third, fourth = (bench.order("sleep", "100") for _ in range(4))
    bench.client.submit(0, [first, second, third, fourth])
    bench.wait_for_kind(AttemptStarted)
    bench.client.recall(0, [third.key, first.key])
    assert bench.wait_for_kind(OrdersReturned).keys == [third.key]
    bench.client.cancel(0, *second.key)
    report = bench.report(second)
    assert (report.outcome, report.why) == (Outcome.CANCELLED, Why.BY_USER)
    bench.client.cancel(0, *first.key, interrupted=True)
    report = bench.report(first)
    assert (report.outcome, report.signal) == (Outcome.INTERRUPTED, signal.SIGTERM)
    bench.wait_for(lambda e: isinstance(e, AttemptStarted) and e.index == fourth.index)
    bench.client.recall(0)
    bench.wait_for(lambda e: isinstance(e, OrdersReturned) and e.keys == [])
    assert bench.client.outstanding(0) == [fourth.key]
    assert bench.close() == 0
    assert bench.report(fourth).outcome is Outcome.INTERRUPTED


def test_timeout(bench: Bench) -> None:
    report = bench.run(bench.shell("echo so far; sleep 100", timeout_s=0.3))
    assert report.outcome is Outcome.TIMEOUT
    assert report.exit_code == -1
    assert report.signal == signal.SIGTERM
    assert report.stdout_tail == "so far\n"
    assert report.error == "timed out after 0.3 s"


def test_timeout_of_a_solver_that_ignores_term(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Recipe(grace_s=0.3))
    script = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done"
    report = bench.run(bench.shell(script, timeout_s=0.3))
    assert report.outcome is Outcome.TIMEOUT
    assert report.signal == signal.SIGKILL
    assert report.duration_s >= 0.6
    bench.wait_gone()


def test_timeout_lets_a_solver_save_its_work(bench: Bench) -> None:
    script = "trap 'echo saved; exit 0' TERM; while :; do sleep 0.05; done"
    report = bench.run(bench.shell(script, timeout_s=0.3))
    assert report.outcome is Outcome.TIMEOUT
    assert report.stdout_tail == "saved\n"


def test_stopped_solver_times_out(bench: Bench) -> None:
    report = bench.run(bench.shell("kill -STOP $$", timeout_s=0.3))
    assert report.outcome is Outcome.TIMEOUT
    assert report.signal == signal.SIGTERM


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal_term = {term}
        if signal_term:
            import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({path!r}, "w").write(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
while not os.path.exists({path!r}): time.sleep(0.01)
print("done", flush=True)
"""


@pytest.mark.parametrize("ignores_term", [False, True])
def test_daemon_does_not_outlive_its_attempt(bench: Bench, tmp_path: Path, ignores_term: bool) -> None:
    path = tmp_path / "daemon.pid"
    report = bench.run(bench.python(DAEMON.format(path=str(path), term=ignores_term)))
    assert report.outcome is Outcome.SUCCESS
    assert report.stdout_tail == "done\n"
    assert not is_alive(int(path.read_text()))
    # The output pipes were renewed: the next attempt is heard as before.
    assert bench.run(bench.shell("echo next")).stdout_tail == "next\n"


def test_children_in_other_sessions_die_with_the_attempt(bench: Bench) -> None:
    order = bench.shell("setsid sleep 1000 & setsid setsid sleep 1000 & sleep 1000")
    bench.client.submit(0, [order])
    wait_until(lambda: len(bench.tagged()) >= 4)
    bench.client.cancel(0, *order.key)
    assert bench.report(order).outcome is Outcome.CANCELLED
    assert bench.tagged() == []


def test_memory_limit(bench: Bench) -> None:
    script = "import time; data = bytearray(200 << 20); print('full', flush=True); time.sleep(100)"
    report = bench.run(bench.python(script, memory_bytes=100 << 20))
    assert report.outcome is Outcome.OUT_OF_MEMORY
    assert report.why is Why.OUT_OF_MEMORY
    assert "limit 100 MiB" in report.error
    report = bench.run(bench.python("data = bytearray(20 << 20)", memory_bytes=500 << 20))
    assert report.outcome is Outcome.SUCCESS


def test_memory_of_the_whole_tree_counts(bench: Bench) -> None:
    script = (
        "import os, time\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        break\n"
        "data = os.urandom(40 << 20); time.sleep(100)"
    )
    report = bench.run(bench.python(script, memory_bytes=120 << 20))
    assert report.outcome is Outcome.OUT_OF_MEMORY
    assert bench.tagged() == []


def test_keep_output(make_bench: Callable[..., Bench]) -> None:
    kept, failed = Recipe(keep_output="all"), Recipe(keep_output="failed")
    bench = make_bench(kept, failed)
    report = bench.run(bench.shell("seq 30000; echo e >&2", recipe=0))
    text = "".join(f"{k}\n" for k in range(1, 30001)).encode()
    assert zlib.decompress(report.packed["@stdout"]) == text
    assert zlib.decompress(report.packed["@stderr"]) == b"e\n"
    assert bench.run(bench.shell("seq 30000", recipe=1)).packed == {}
    report = bench.run(bench.shell("seq 30000; exit 1", recipe=1))
    assert zlib.decompress(report.packed["@stdout"]) == text


def test_large_kept_output_goes_to_the_shard(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(Recipe(keep_output="all"))
    script = "import os, sys\nfor _ in range(64): sys.stdout.buffer.write(os.urandom(1 << 16))"
    for _ in range(2):
        report = bench.run(bench.python(script))
        value = report.large["@stdout"]
        assert value.dtype == "bytes"
        data = Path(f"{bench.output_path}.shards", value.shard).read_bytes()
        data = data[value.offset : value.offset + value.size_bytes]
        assert zlib.crc32(data) == value.crc32
        assert len(zlib.decompress(data)) == report.stdout_bytes == 1 << 22
    assert len(os.listdir(f"{bench.output_path}.shards")) == 1


def test_result_file(bench: Bench) -> None:
    report = bench.run(bench.shell("""echo '{"a": 1, "b": {"c": NaN}}' > $KEYSTONE_RESULT"""))
    assert report.scalars["a"] == 1
    assert report.scalars["b.c"] != report.scalars["b.c"]
    report = bench.run(bench.shell("""echo '{"a": 1}'; echo '{"a": 2, "d": [1, 2]}' > $KEYSTONE_RESULT"""))
    assert report.scalars == {"a": 2}
    assert report.arrays["d"].shape == (2,)
    report = bench.run(bench.shell("echo '{broken' > $KEYSTONE_RESULT"))
    assert (report.outcome, report.why) == (Outcome.FAILED, Why.RESULTS)
    assert "malformed JSON" in report.error
    assert bench.run(bench.order("true")).scalars == {}


def test_failed_attempts_bring_no_results(bench: Bench) -> None:
    report = bench.run(bench.shell("""echo '{"a": 1}'; echo '{"b": 1}' > $KEYSTONE_RESULT; exit 1"""))
    assert report.scalars == {}


def test_regex_over_long_output(make_bench: Callable[..., Bench]) -> None:
    rule = CollectRule(name="residual", regex=r"^residual = (\S+)", type="float")
    other = CollectRule(name="count", regex=r"count (\d+)", source="stderr")
    bench = make_bench(Recipe(collect=(rule, other)))
    script = "echo residual = 5; seq 500000; echo residual = 1.5D-3; seq 500000; echo count 7 >&2"
    report = bench.run(bench.shell(script))
    assert report.scalars == {"residual": 0.0015, "count": 7}


@pytest.fixture
def work(make_bench: Callable[..., Bench], tmp_path: Path) -> Callable[..., tuple[Bench, Path]]:
    def make(mode: str, **options: object) -> tuple[Bench, Path]:
        bench = make_bench(Recipe(workdir=mode, **options))
        if mode == "task":
            return bench, Path(f"{bench.output_path}.work")
        local = tmp_path / "local" / bench.run_id
        return bench, local

    return make


FILL = "mkdir -p deep/er; echo 1 > a.vtu; echo 2 > deep/er/b.vtu; echo 3 > junk.log; cat input.nml"


def _folder_order(
    bench: Bench, root: Path, script: str, task: str = "0", attempt: int = 1, **options: object
):
    below = f"{task}/attempt-{attempt}" if root.suffix == ".work" else f"{task}-{attempt}"
    cwd = root / below
    writes = ((str(cwd / "input.nml"), "&run n = 3 /\n"),)
    env = {"KEYSTONE_TASK_ID": task}
    return bench.shell(script, cwd=str(cwd), writes=writes, env=env, attempt=attempt, **options)


def test_task_folder(work: Callable[..., tuple[Bench, Path]]) -> None:
    bench, root = work("task")
    report = bench.run(_folder_order(bench, root, FILL))
    assert report.stdout_tail == "&run n = 3 /\n"
    assert report.work_path == str(root / "0/attempt-1")
    assert sorted(os.listdir(report.work_path)) == ["a.vtu", "deep", "input.nml", "junk.log"]


def test_task_folder_with_keep(work: Callable[..., tuple[Bench, Path]]) -> None:
    bench, root = work("task", keep=("**/*.vtu",))
    report = bench.run(_folder_order(bench, root, FILL))
    assert report.artifacts == ("a.vtu", "deep/er/b.vtu")
    found = sorted(str(p.relative_to(report.work_path)) for p in Path(report.work_path).rglob("*.*"))
    assert found == ["a.vtu", "deep/er/b.vtu"]
    report = bench.run(_folder_order(bench, root, "true", task="1"))
    assert report.work_path == ""
    assert not (root / "1").exists()
    report = bench.run(_folder_order(bench, root, FILL + "; exit 1", task="2"))
    assert (root / "2/attempt-1/junk.log").exists()
    report = bench.run(_folder_order(bench, root, FILL + "; exit 1", task="3", keep_failed=False))
    assert report.work_path == ""
    assert not (root / "3").exists()


def test_folder_is_fresh(work: Callable[..., tuple[Bench, Path]]) -> None:
    bench, root = work("task")
    (root / "0/attempt-1").mkdir(parents=True)
    (root / "0/attempt-1/stale").write_text("of another life")
    report = bench.run(_folder_order(bench, root, "ls"))
    assert report.stdout_tail == "input.nml\n"


def test_local_folder(work: Callable[..., tuple[Bench, Path]]) -> None:
    bench, root = work("local", keep=("*.vtu",))
    kept = Path(f"{bench.output_path}.work")
    report = bench.run(_folder_order(bench, root, FILL))
    assert report.artifacts == ("a.vtu",)
    assert (kept / "0/attempt-1/a.vtu").read_text() == "1\n"
    report = bench.run(_folder_order(bench, root, FILL + "; exit 1", task="1"))
    assert report.work_path == str(kept / "1/attempt-1")
    assert (kept / "1/attempt-1/deep/er/b.vtu").exists()
    assert not root.exists() or not any(root.iterdir())
    shutil.rmtree(root, ignore_errors=True)


def test_interrupted_attempt_leaves_no_folder(work: Callable[..., tuple[Bench, Path]]) -> None:
    bench, root = work("task")
    order = _folder_order(bench, root, "echo 1 > a; sleep 100")
    bench.client.submit(0, [order])
    bench.wait_for_kind(AttemptStarted)
    bench.client.cancel(0, *order.key, interrupted=True)
    assert bench.report(order).outcome is Outcome.INTERRUPTED
    assert not (root / "0").exists()


def test_copies_links_and_missing_source(work: Callable[..., tuple[Bench, Path]], tmp_path: Path) -> None:
    bench, root = work("task")
    (tmp_path / "mesh.msh").write_text("mesh")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/t.dat").write_text("table")
    cwd = root / "0/attempt-1"
    copies = ((str(cwd / "in/mesh.msh"), str(tmp_path / "mesh.msh")),)
    links = ((str(cwd / "tables"), str(tmp_path / "tables")),)
    order = bench.shell("cat in/mesh.msh tables/t.dat", cwd=str(cwd), copies=copies, links=links)
    assert bench.run(order).stdout_tail == "meshtable"
    copies = ((str(cwd / "in/mesh.msh"), str(tmp_path / "gone.msh")),)
    report = bench.run(bench.shell("true", cwd=str(cwd), copies=copies))
    assert report.why is Why.NOT_STARTED
    assert "gone.msh" in report.error


def test_stale_file_is_no_result(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    rule = CollectRule(name="u", file="u.txt", type="float")
    needed = CollectRule(name="u", file="u.txt", type="float", required=True)
    bench = make_bench(Recipe(collect=(rule,)), Recipe(collect=(needed,)))
    path = tmp_path / "u.txt"
    path.write_text("1.5")
    files = {"u": str(path)}
    assert bench.run(bench.order("true", collect_files=files)).scalars == {}
    report = bench.run(bench.order("true", collect_files=files, recipe=1))
    assert (report.outcome, report.why) == (Outcome.FAILED, Why.RESULTS)
    assert "older than this attempt" in report.error
    report = bench.run(bench.shell("echo 2.5 > u.txt", collect_files=files, recipe=1))
    assert report.scalars == {"u": 2.5}


def test_large_array_goes_to_the_shard(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    field = numpy.arange(300_000, dtype="f8").reshape(300, 1000)
    source = tmp_path / "source.npy"
    numpy.save(source, field)
    bench = make_bench(Recipe(collect=(CollectRule(name="field", file="u.npy", required=True),)))
    order = bench.order("cp", str(source), "u.npy", collect_files={"field": str(tmp_path / "u.npy")})
    report = bench.run(order)
    assert report.arrays == {}
    value = report.large["field"]
    assert (value.dtype, value.shape) == ("<f8", (300, 1000))
    data = Path(f"{bench.output_path}.shards", value.shard).read_bytes()
    data = data[value.offset : value.offset + value.size_bytes]
    assert zlib.crc32(data) == value.crc32
    assert (numpy.frombuffer(data, "<f8").reshape(300, 1000) == field).all()


def test_large_order_and_report(bench: Bench) -> None:
    """Messages far beyond a socket's buffer."""
    text = "x" * 3_000_000
    script = "import os; print(len(open('big').read()))"
    order = bench.python(script, writes=((str(bench.folder / "big"), text),))
    assert bench.run(order).stdout_tail == "3000000\n"
    values = "{'v%d' % k: 'y' * 50000 for k in range(60)}"
    script = f"import json, os; open(os.environ['KEYSTONE_RESULT'], 'w').write(json.dumps({values}))"
    report = bench.run(bench.python(script))
    assert len(report.scalars) == 60


def test_idle_slots_and_launcher_do_nothing(bench: Bench) -> None:
    bench.run(bench.order("true"))
    order = bench.order("sleep", "100")
    bench.client.submit(1, [order])
    bench.wait_for_kind(AttemptStarted)
    pids = [bench.client.launcher_pid, *slot_pids(bench.client)]

    def switches() -> int:
        total = 0
        for pid in pids:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
        return total

    before = switches()
    bench.client.read_events(1.0)
    assert switches() - before <= 3
