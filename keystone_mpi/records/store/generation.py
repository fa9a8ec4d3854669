"""Generations: a changed copy takes the place of the visible file, at once and whole.

Rule: the visible file is only ever the target of a rename. Whatever happens
before the rename leaves it untouched, and the temp is removed.

    OUT --copy--> .OUT.next-<token>-<pid> --(caller changes it)--> fsync --rename--> OUT, fsync folder
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from pathlib import Path

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.records.journal import sync_folder
from keystone_mpi.records.lease import process_start

ADVICE = "(make room or check the mount; the same command again continues)"
_COPY_BYTES = 1 << 30
_ALIEN_AGE_S = 3600.0
"""A temp of another machine is litter when it was not written to for this long."""


class Generation:
    """The next content of `output_path`, in the making; use as a context manager.

    Attributes
    ----------
    path : Path
        The private temp file: a copy of the present output, or not yet there
        when there is no output.
    """

    def __init__(self, output_path: Path, *, from_present: bool) -> None:
        self.output_path = output_path
        self.path = output_path.with_name(
            f".{output_path.name}.next-{_machine()}-{os.getpid()}-{os.urandom(2).hex()}"
        )
        self._from_present = from_present
        self._source: os.stat_result | None = None

    def __enter__(self) -> Generation:
        remove_stale(self.output_path)
        if self._from_present:
            try:
                self._source = _copy(self.output_path, self.path)
            except OSError as error:
                self._discard()
                raise ClusterError(
                    f"{self.output_path} cannot be copied to write its next generation: {error.strerror} "
                    f"{ADVICE}"
                ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._discard()

    def publish(self) -> None:
        """Make the temp the output.

        Raises
        ------
        ClusterError
            The disk refuses, or somebody else replaced the output meanwhile.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            present = _stat(self.output_path)
            if not _same_file(present, self._source):
                raise ClusterError(
                    f"{self.output_path} was replaced by somebody else while it was being updated"
                )
            os.rename(self.path, self.output_path)
            sync_folder(self.output_path.parent)
        except OSError as error:
            raise ClusterError(f"{self.output_path} cannot be written: {error.strerror} {ADVICE}") from error

    def _discard(self) -> None:
        _remove(self.path)


def remove_stale(output_path: Path) -> None:
    """Remove temps of processes that are gone."""
    prefix = f".{output_path.name}.next-"
    for litter in output_path.parent.glob(f"{prefix}*"):
        machine, _, rest = litter.name.removeprefix(prefix).partition("-")
        pid, _, _ = rest.partition("-")
        if machine == _machine() and pid.isdigit():
            dead = process_start(int(pid)) < 0
        else:
            found = _stat(litter)
            dead = found is not None and time.time() - found.st_mtime > _ALIEN_AGE_S
        if dead:
            _remove(litter)


def _remove(path: Path) -> None:
    try:
        # HDF5 keeps a file open whose close failed; cut it, or its blocks stay taken on a full disk.
        os.truncate(path, 0)
        os.unlink(path)
    except OSError:
        pass


def _copy(source: Path, target: Path) -> os.stat_result:
    """Copy content and permissions; return what was copied."""
    with open(source, "rb") as reader:
        status = os.fstat(reader.fileno())
        with open(target, "xb") as writer:
            done = 0
            try:
                while done < status.st_size:
                    step = os.copy_file_range(reader.fileno(), writer.fileno(), _COPY_BYTES)
                    if step == 0:
                        break
                    done += step
            except OSError as error:
                if error.errno not in (
                    errno.ENOSYS,
                    errno.EXDEV,
                    errno.EINVAL,
                    errno.EOPNOTSUPP,
                    errno.EPERM,
                ):
                    raise
            if done < status.st_size:  # not supported here (some network and overlay file systems)
                reader.seek(done)
                writer.seek(done)
                shutil.copyfileobj(reader, writer, 1 << 20)
            os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
    return status


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _same_file(left: os.stat_result | None, right: os.stat_result | None) -> bool:
    if left is None or right is None:
        return left is right
    return (left.st_ino, left.st_size, left.st_mtime_ns) == (right.st_ino, right.st_size, right.st_mtime_ns)


def _machine() -> str:
    return os.uname().nodename.replace("-", "_") or "host"
