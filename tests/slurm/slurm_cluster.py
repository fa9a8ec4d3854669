"""A real Slurm cluster of virtual nodes on this machine, for as long as the tests need it.

One munged, one slurmctld, and per node one slurmd in namespaces of its own
(host name, mounts, processes), so that a node's processes see only each other,
its host name and boot differ from the others', and killing one process is a
power failure. All files lie in one private folder, all daemons die with the
process that made the cluster.

    SlurmCluster(folder).start() --> nodes node1..nodeN idle
      .environment   what a client needs
      .crash(k)      power failure of a node;   .boot(k) brings it back
      .freeze(k)     it stops answering;        .thaw(k)
      .stop()
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "unshare")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
START_LIMIT_S = 60.0
NODE_TIMEOUT_S = 10
"""SlurmdTimeout: a silent node is down after so long."""
RUNNING_STATES = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "STOPPED")

CONFIGURATION = """\
ClusterName=keystone
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
TmpFS={folder}/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PriorityType=priority/basic
SlurmdTimeout={node_timeout}
SlurmctldTimeout=10
BatchStartTimeout=10
InactiveLimit=0
KillWait=2
WaitTime=0
CompleteWait=0
UnkillableStepTimeout=20
MessageTimeout=5
MinJobAge=3600
MaxArraySize=101
ReturnToService=2
JobRequeue=1
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
"""


class ClusterProblem(RuntimeError):
    """The cluster does not come up."""


def missing() -> str:
    """Say what this machine lacks for a cluster of its own; empty: nothing."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"no {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "not root: virtual nodes need namespaces"
    probe = subprocess.run(
        [*_NAMESPACES, "sh", "-c", "hostname probe && mount --bind /etc/hosts /etc/hosts"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else ""


_NAMESPACES = (
    "unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
    "--propagation", "slave",
)  # fmt: skip


class SlurmCluster:
    """See the module; one instance is one cluster.

    Parameters
    ----------
    folder : Path
        Private and short; removed by `stop`.
    nodes, cpus : int
        How many nodes, and how many CPUs each claims whatever the machine has.
    """

    def __init__(self, folder: Path, *, nodes: int = 3, cpus: int = 4) -> None:
        self.folder = folder
        self.cpus = cpus
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        # What a test starts is tagged; the daemons outlive single tests and must not be.
        dropped = ("KEYSTONE_TEST", "KEYSTONE_JOB", "SLURM_", "PMI")
        self._daemon_environment = {
            name: value for name, value in os.environ.items() if not name.startswith(dropped)
        }
        self._daemon_environment |= {"PATH": f"{os.environ['PATH']}:{SBIN}", "SLURM_CONF": str(self.conf)}

    @property
    def conf(self) -> Path:
        """The cluster's slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment needs in addition."""
        return {"SLURM_CONF": str(self.conf)}

    # --- up and down -----------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up and wait until all nodes are idle."""
        for name in ("state", "spool", "tmp"):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._daemon(
            "munged",
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed", "--num-threads=2",
        )  # fmt: skip
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged makes no socket")
        self._daemon("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        self._wait(lambda: "is UP" in self.run("scontrol", "ping", check=False), "slurmctld does not answer")
        for name in self.nodes:
            self._boot(name)
        self.wait_idle()

    def stop(self) -> None:
        """End every daemon and all that runs on the nodes; remove the folder."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.run("scancel", "--full", "--user=root", check=False)
        for name in (*self.nodes, "slurmctld", "munged"):
            daemon = self._daemons.pop(name, None)
            if daemon is not None:
                if name == "slurmctld":  # it has a child to take along
                    daemon.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        daemon.wait(5.0)
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        ports = _free_ports(1 + len(self.nodes))
        lines = [
            CONFIGURATION.format(
                host=socket.gethostname(), port=ports[0], folder=self.folder, node_timeout=NODE_TIMEOUT_S
            )
        ]
        hosts = [Path("/etc/hosts").read_text()]
        for name, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
                f"Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1 RealMemory=4000 "
                "State=UNKNOWN\n"
            )
            hosts.append(f"127.0.0.1 {name}\n")
            (self.folder / "tmp" / name).mkdir(mode=0o1777)
            (self.folder / "spool" / name).mkdir()
        lines.append(
            f"PartitionName=debug Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE DefaultTime=60 "
            "OverSubscribe=NO State=UP\n"
        )
        self.conf.write_text("".join(lines))
        (self.folder / "hosts").write_text("".join(hosts))
        version = self.run("slurmd", "-V").split()[1].split(".")
        if (int(version[0]), int(version[1])) >= (23, 11):
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")

    def _daemon(self, name: str, *command: str) -> None:
        log = open(self.folder / f"{name}.out", "ab")  # noqa: SIM115
        self._daemons[name] = subprocess.Popen(
            command,
            env=self._daemon_environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        log.close()

    def _boot(self, name: str) -> None:
        boot = self.folder / f"{name}.boot"
        boot.write_text(f"{uuid.uuid4()}\n")
        init = str(Path(__file__).with_name("node_init.py"))
        self._daemon(
            name,
            *_NAMESPACES, sys.executable, "-S", "-E", init, name, str(self.folder / "hosts"), str(boot),
            "slurmd", "-D", "-f", str(self.conf), "-N", name,
        )  # fmt: skip

    # --- nodes -----------------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """Power failure: every process of the node is gone at once."""
        daemon = self._daemons.pop(name)
        namespace = self._namespace(daemon.pid)
        daemon.kill()
        daemon.wait()
        # What a machine that lost its power has on its own disk: here the nodes share one.
        for folder in Path(tempfile.gettempdir()).glob(f"keystone-*-{namespace}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def notice(self, name: str) -> None:
        """Have Slurm notice at once that a node is gone, as it does by itself after its timeout."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")

    def boot(self, name: str) -> None:
        """Bring a node back and wait until it is usable."""
        if name not in self._daemons:
            self._boot(name)
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        self.wait_idle(name)

    def freeze(self, name: str) -> None:
        """Stop every process of the node: it no longer answers anybody."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Undo `freeze`."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: int) -> None:
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):  # it ended since it was listed
                os.kill(pid, number)

    def processes(self, name: str) -> list[int]:
        """Return all processes of a node, as seen from here."""
        namespace = self._namespace(self._daemons[name].pid)
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.stat(f"/proc/{entry}/ns/pid").st_ino == namespace:
                    found.append(int(entry))
        return found

    @staticmethod
    def _namespace(pid: int) -> int:
        """Number of the namespace that `unshare` made its child's."""
        return os.stat(f"/proc/{_children(pid)[0]}/ns/pid").st_ino

    def wait_idle(self, *names: str) -> None:
        """Wait until the nodes (all by default) have nothing to do and answer."""
        wanted = names or tuple(self.nodes)

        def idle() -> bool:
            lines = self.run("sinfo", "-h", "-N", "-o", "%N=%T", check=False).split()
            return all(f"{name}=idle" in lines for name in wanted)

        self._wait(idle, f"{', '.join(wanted)} do not become idle")

    # --- clients ---------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands and return what it printed."""
        done = subprocess.run(
            command,
            env={**self._daemon_environment, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise ClusterProblem(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """Return what Slurm says of a job; of an array, of its first element that is there."""
        text = self.run("scontrol", "show", "job", "-o", job_id, check=False)
        line = text.splitlines()[0] if text else ""
        return dict(part.partition("=")[::2] for part in line.split() if "=" in part)

    def state(self, job_id: str) -> str:
        """Return a job's state."""
        return self.job(job_id).get("JobState", "UNKNOWN")

    def wait_job(self, job_id: str, limit_s: float = 90.0) -> dict[str, str]:
        """Wait until no part of a job waits or runs, and return what Slurm says of it then."""
        self._wait(
            lambda: not self.run("squeue", "-h", "-o", "%T", "-t", ",".join(RUNNING_STATES), "-j", job_id,
                                 check=False).strip(),
            f"job {job_id} does not end", limit_s,
        )  # fmt: skip
        return self.job(job_id)

    def clean(self) -> None:
        """Cancel what is left of a test, bring dead nodes back and wait until all is idle."""
        self.run("scancel", "--full", "--user=root", check=False)
        for name in self.nodes:
            if name not in self._daemons:
                self.boot(name)
        self.wait_idle()

    def _wait(self, condition: Callable[[], bool], problem: str, limit_s: float = START_LIMIT_S) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                raise ClusterProblem(f"{problem} after {limit_s:.0f} s\n{self._tell()}")
            time.sleep(0.1)

    def _tell(self) -> str:
        parts = [self.run("sinfo", "-N", "-l", check=False), self.run("squeue", "-t", "all", check=False)]
        for log in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")]):
            lines = log.read_text(errors="replace").splitlines()[-12:]
            parts.append(f"--- {log.name}\n" + "\n".join(lines))
        return "\n".join(parts)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _free_ports(count: int) -> list[int]:
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sockets.append(sock)
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
