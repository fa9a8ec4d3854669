"""The lease: at most one master per run, on any file system, without locks.

Rule: a lease file appears whole or not at all (temp file, then `link`). Only
its holder rewrites it. A dead holder's lease is replaced by whoever first
makes the *claim* named after that very lease, so two starts that both find it
dead do not both win. A holder that finds another's lease in its place stops,
and so does one whose lease and journal are both gone: it was taken for dead.

    none ----- link(temp, OUT.lease) ------------------------------------> held
    dead ----- link(temp, claim of that lease) -- still the same? -- rename(temp, OUT.lease) --> held
    held ----- renew: still mine? -- rename(temp, OUT.lease) -------------> held
    held ----- release: still mine? -- unlink ----------------------------> none

Alive means: on the same boot of the same machine, a process with that pid and
that start time; elsewhere, a stamp younger than a minute. Known to be dead
means: no such process there; elsewhere, the batch system says so. A start may
replace a holder that is not alive, a mere reader only one known to be dead: the
other may be suspended, or cut off from the disk, and go on.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from keystone_mpi.core.errors import ClusterError, LeaseHeldError
from keystone_mpi.records.journal import journal_identity

STALE_S = 60.0
"""A lease of another machine that was not renewed for this long is dead."""
_ADVICE = "(make room or check the mount; the same command again continues)"
_MAX_CLAIMS = 8
"""Depth of claims on claims: each needs one more process that died within milliseconds."""


class LeaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease file says of its holder."""

    token: str
    """Unique to this acquisition."""
    run_id: str
    epoch: int
    host: str
    boot_id: str
    """Tells one boot of a machine from the next, and machines of the same name apart."""
    pid_namespace: str
    """Pids mean something only within it (containers)."""
    pid: int
    pid_started: int
    """Start of the process in clock ticks since boot, so that a recycled pid is not taken for it."""
    job_id: str = ""
    """Job of the batch system; empty: none."""
    acquired: float = 0.0
    """Seconds since the epoch."""
    stamp: float = 0.0
    """Last renewal: modification time of the file, seconds since the epoch."""
    status: dict[str, Any] = {}
    """What the holder said of its run at the last renewal."""

    def is_alive(self, now: float | None = None) -> bool:
        """Tell whether the holder still runs, as far as can be known from here.

        Parameters
        ----------
        now : float, optional
            Seconds since the epoch; the present by default.
        """
        if self.pid <= 0:
            return (time.time() if now is None else now) - self.stamp < STALE_S
        if self.is_here:
            return process_start(self.pid) == self.pid_started
        return (time.time() if now is None else now) - self.stamp < STALE_S

    @property
    def is_here(self) -> bool:
        """Whether its process, if it lives, can be seen from here."""
        return self.boot_id == _boot_id() and self.pid_namespace == _pid_namespace()

    def is_known_dead(self, is_gone: Callable[[str], bool] | None = None) -> bool:
        """Tell whether the holder certainly runs no more.

        Parameters
        ----------
        is_gone : callable, optional
            Tells of its `job_id` whether that job has ended; asked only of a
            holder that cannot be seen from here.
        """
        if self.pid <= 0:
            return False
        if self.is_here:
            return process_start(self.pid) != self.pid_started
        return bool(self.job_id) and is_gone is not None and is_gone(self.job_id)

    def holder(self) -> str:
        """Describe the holder in a few words."""
        if self.pid <= 0:
            return "somebody (the lease file cannot be read)"
        job = f", job {self.job_id}" if self.job_id else ""
        return f"process {self.pid} on {self.host}{job}"


class Lease:
    """A held lease; `release` or leaving the ``with`` block gives it up."""

    def __init__(self, path: Path, info: LeaseInfo) -> None:
        self.path = path
        self.info = info
        self._released = False
        self._lock = threading.RLock()
        """A renewal in one thread, the release in another."""
        self._journal: tuple[int, int] | None = None
        """Which file was the journal at the last renewal; None: there was none."""

    def renew(
        self, status: dict[str, Any] | None = None, *, run_id: str | None = None, epoch: int | None = None
    ) -> None:
        """Rewrite the lease with a new stamp.

        Parameters
        ----------
        status : dict, optional
            JSON-able facts for readers; None keeps the former ones.
        run_id, epoch : optional
            What the holder found out that it is about to do; None keeps them.

        Raises
        ------
        LeaseHeldError
            The lease is another's now, or was and the journal is gone: this
            master has to stop at once.
        ClusterError
            The disk does not take it. The stamp was renewed all the same
            where the file system allows that.
        """
        with self._lock:
            if not self._released:
                self._renew(status, run_id, epoch)

    def _renew(self, status: dict[str, Any] | None, run_id: str | None, epoch: int | None) -> None:
        found = _read(self.path)
        if found is not None and found.token != self.info.token:
            raise LeaseHeldError(
                f"lease {self.path}: taken over by {found.holder()} (epoch {found.epoch}, this is epoch "
                f"{self.info.epoch}); this master stops. What it had acknowledged is safe: "
                f"`keystone-mpi status` on {self._output_name} shows it"
            )
        try:
            journal = journal_identity(self.path.with_name(f"{self._output_name}.journal"))
        except OSError:
            journal = self._journal  # not to be told now; its writer looks too
        if found is None and self._journal is not None and journal != self._journal:
            raise LeaseHeldError(
                f"lease {self.path} and the journal beside it are gone: this master (epoch "
                f"{self.info.epoch}) was silent for so long that it was taken for dead. It stops; what it "
                f"had acknowledged is safe: `keystone-mpi status` on {self._output_name} shows it"
            )
        self._journal = journal or self._journal
        self.info = msgspec.structs.replace(
            self.info,
            stamp=time.time(),
            status=self.info.status if status is None else status,
            run_id=self.info.run_id if run_id is None else run_id,
            epoch=self.info.epoch if epoch is None else epoch,
        )
        try:
            if found is None:  # somebody removed the file; a rename could hide a new holder's
                _link(_write_temp(self.path, self.info), self.path)
            else:
                _replace(self.path, self.info)
        except FileExistsError:
            self._renew(status, run_id, epoch)
        except OSError as error:
            try:
                os.utime(self.path)  # needs no space; readers take the later of both times
            except OSError:
                pass
            raise ClusterError(
                f"lease {self.path} cannot be renewed: {error.strerror}; make room or check the mount"
            ) from error

    def release(self) -> None:
        """Remove the lease, if it is still ours. Doing it twice is harmless."""
        with self._lock:
            if self._released:
                return
            self._released = True
            found = _read(self.path)
            if found is not None and found.token == self.info.token:
                self.path.unlink(missing_ok=True)
            _clean(self.path)

    @property
    def _output_name(self) -> str:
        return self.path.name.removesuffix(".lease")

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lease_path(output_path: Path) -> Path:
    """Return the path of the lease that belongs to an output file."""
    return output_path.with_name(output_path.name + ".lease")


def read_lease(output_path: Path) -> LeaseInfo | None:
    """Return who holds, or last held, the run of an output file; None when nobody does."""
    return _read(lease_path(output_path))


def acquire(
    output_path: Path,
    *,
    run_id: str,
    epoch: int,
    job_id: str = "",
    status: dict[str, Any] | None = None,
    is_gone: Callable[[str], bool] | None = None,
    only_known_dead: bool = False,
) -> Lease:
    """Become the one master of an output file.

    Parameters
    ----------
    output_path : Path
        The HDF5 file of the run.
    run_id, epoch : str, int
        What the holder is about to do; told to whoever is refused.
    job_id : str
        Job of the batch system, empty when there is none.
    status : dict, optional
        JSON-able facts for readers.
    is_gone : callable, optional
        Tells of a holder's `job_id` whether that job has ended: its lease is
        taken over although its stamp is young. Not asked of a holder on this machine.
    only_known_dead : bool
        Respect a holder that is only silent, however long: see `LeaseInfo.is_known_dead`.

    Raises
    ------
    LeaseHeldError
        Another process holds it and lives, or may live.
    ClusterError
        The folder cannot be written.
    """
    path = lease_path(output_path)
    now = time.time()
    info = LeaseInfo(
        token=os.urandom(12).hex(),
        run_id=run_id,
        epoch=epoch,
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        pid_started=process_start(os.getpid()),
        job_id=job_id,
        acquired=now,
        stamp=now,
        status=status or {},
    )
    try:
        _take(path, info, depth=0, is_gone=is_gone, only_known_dead=only_known_dead)
    except OSError as error:
        raise ClusterError(f"lease {path} cannot be made: {error.strerror} {_ADVICE}") from error
    _clean(path)
    return Lease(path, info)


def _take(
    path: Path,
    info: LeaseInfo,
    *,
    depth: int,
    is_gone: Callable[[str], bool] | None,
    only_known_dead: bool,
) -> None:
    """Put `info` at `path`, where there is nothing or a dead holder's record."""
    while True:
        temp = _write_temp(path, info)
        now = temp.stat().st_mtime  # the file system's clock, which stamped the other's lease too
        try:
            _link(temp, path)
            return
        except FileExistsError:
            pass
        found = _read(path)
        if found is None:  # released this moment
            continue
        is_silent = not only_known_dead and not found.is_alive(now)
        if not is_silent and not found.is_known_dead(is_gone):
            raise _held(path, found, now)
        if depth >= _MAX_CLAIMS:
            raise ClusterError(
                f"lease {path}: too many dead claims; remove .{path.name}-claim-* and try again"
            )
        claim = _claim_path(path, found, depth)
        _take(claim, info, depth=depth + 1, is_gone=None, only_known_dead=only_known_dead)
        try:
            # Only the holder of the claim may replace this very record. It may have been replaced
            # before the claim was ours.
            present = _read(path)
            if present is not None and present.token == found.token:
                _replace(path, info)
                return
        finally:
            claim.unlink(missing_ok=True)


def _claim_path(path: Path, found: LeaseInfo, depth: int) -> Path:
    name = path.name if depth == 0 else path.name.lstrip(".").partition("-claim-")[0]
    return path.with_name(f".{name}-claim-{found.token}")


def _held(path: Path, found: LeaseInfo, now: float) -> LeaseHeldError:
    age_s = max(0.0, now - found.stamp)
    advice = (
        "look at it with `keystone-mpi status`, stop it with `keystone-mpi drain`"
        if found.is_here
        else f"if that process is dead, wait until the lease is {STALE_S:.0f} s old and try again"
    )
    return LeaseHeldError(
        f"lease {path}: {found.holder()} runs this output "
        f"(epoch {found.epoch}, renewed {age_s:.0f} s ago); {advice}"
    )


def _read(path: Path) -> LeaseInfo | None:
    try:
        data = path.read_bytes()
        modified = path.stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterError(f"lease {path} cannot be read: {error.strerror}; check the mount") from error
    try:
        info = msgspec.json.decode(data, type=LeaseInfo)
    except msgspec.DecodeError:
        # Torn by a power loss, or being written where hard links do not exist: age decides.
        return LeaseInfo(
            token=f"unreadable-{int(modified * 1e9):x}",
            run_id="",
            epoch=0,
            host="",
            boot_id="",
            pid_namespace="",
            pid=0,
            pid_started=0,
            stamp=modified,
        )
    # One clock for all: that of the file system, not that of whichever machine wrote the text.
    return msgspec.structs.replace(info, stamp=modified)


def _write_temp(path: Path, info: LeaseInfo) -> Path:
    boot = info.boot_id[:8]
    temp = path.with_name(f".{path.name.lstrip('.')}-{boot}-{info.pid}-{os.urandom(4).hex()}")
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(info))
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    return temp


def _replace(path: Path, info: LeaseInfo) -> None:
    temp = _write_temp(path, info)
    try:
        os.rename(temp, path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise


def _clean(path: Path) -> None:
    """Remove temps and claims beside `path` that killed processes left."""
    for litter in path.parent.glob(f".{path.name}-*"):
        found = _read(litter)
        if found is None:
            continue
        dead = not found.is_alive()
        if found.pid <= 0:  # cut before its content was written: its name tells the process
            boot, _, rest = litter.name.removeprefix(f".{path.name}-").partition("-")
            pid = rest.partition("-")[0]
            dead = dead or (boot == _boot_id()[:8] and pid.isdigit() and process_start(int(pid)) < 0)
        if dead:
            litter.unlink(missing_ok=True)


def _link(temp: Path, path: Path) -> None:
    """Give `temp` the name `path` unless it is taken; `temp` is gone afterwards in any case."""
    try:
        os.link(temp, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links here: exclusive creation is atomic too, only the content follows later.
        with open(path, "xb") as file:
            file.write(temp.read_bytes())
    finally:
        temp.unlink(missing_ok=True)


def process_start(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; -1 when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return -1
    if fields[0] in (b"Z", b"X"):
        return -1
    return int(fields[19])


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
