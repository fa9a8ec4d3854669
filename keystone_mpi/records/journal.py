"""The journal: an append-only file of framed entries, the truth while a run goes on.

Rule: what lies before a cut, a torn write or a flipped bit is read back whole;
what lies behind it is not guessed at. Bytes stay in memory until a sync has
succeeded, and are written again at the same place when one has failed. Nothing
is called durable in a file that is no longer the journal of its output: whoever
takes a run over *seals* the journal before reading it to its end, and a writer
looks for that, and for its file at its path, after every sync.

    append --> filling --(write: pwrite)--> written --(sync: fdatasync)--> durable, forgotten
                                              ^                 |
                                              '---- failed -----'

    file:  magic "KEYSTONE-JOURNAL\\n", u32 version, then frames
    frame: u32 length of payload, u32 crc32 of payload, payload (msgpack of one entry)
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import ClusterError, LeaseHeldError, OutputError
from keystone_mpi.records.entries import JOURNAL_FORMAT, Entry, RunOpened

MAGIC = b"KEYSTONE-JOURNAL\n"
HEADER = MAGIC + struct.pack("<I", JOURNAL_FORMAT)
HEADER_BYTES = len(HEADER)
_FRAME = struct.Struct("<II")
_READ_BYTES = 1 << 20


def journal_path(output_path: Path) -> Path:
    """Return the path of the journal that belongs to an output file."""
    return output_path.with_name(output_path.name + ".journal")


def sync_folder(path: Path) -> None:
    """Make a created, renamed or removed name in folder `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class JournalWriter:
    """Appends entries to a journal.

    `append` may be called from any thread; `write`, `sync`, `flush` and
    `close` from one thread at a time.

    Parameters
    ----------
    path : Path
        The journal file.
    create : bool
        True: make a new file, which must not exist. False: go on after the
        last whole frame of an existing one; a torn tail is cut off.

    Raises
    ------
    ClusterError
        The file cannot be made or opened.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._filling = bytearray()
        self._unsynced: list[bytearray] = []
        """Buffers from `_synced_offset` on, in order; those below `_offset` have been written."""
        self._unwritten_from = 0
        """Position in `_unsynced` of the first buffer that is not yet written."""
        try:
            if create:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    _pwrite_all(self._descriptor, HEADER, 0)
                    os.fsync(self._descriptor)
                    sync_folder(path.parent)
                except OSError:
                    os.close(self._descriptor)
                    os.unlink(path)
                    raise
                offset = HEADER_BYTES
            else:
                offset = HEADER_BYTES
                for offset, _payload in _frames(path, 0):  # noqa: B007
                    pass
                self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                os.ftruncate(self._descriptor, offset)
                _pwrite_all(self._descriptor, HEADER, 0)
            self._file = _identity(os.fstat(self._descriptor))
        except FileExistsError as error:
            raise ClusterError(
                f"journal {path} exists already: another run writes it, or one died and was not recovered; "
                "`keystone-mpi status` on the output file says which"
            ) from error
        except OSError as error:
            raise ClusterError(
                f"journal {path} cannot be opened: {error.strerror} "
                "(make room or check the mount; the same command again continues)"
            ) from error
        self._offset = offset
        self._synced_offset = offset

    def append(self, entry: Entry) -> None:
        """Encode one entry into the buffer; nothing is written yet."""
        with self._lock:
            buffer = self._filling
            start = len(buffer)
            buffer += b"\0\0\0\0\0\0\0\0"
            try:
                self._encoder.encode_into(entry, buffer, -1)
            except BaseException:
                del buffer[start:]  # an entry that cannot be encoded leaves no half frame behind
                raise
            with memoryview(buffer) as view:
                crc = zlib.crc32(view[start + 8 :])
            _FRAME.pack_into(buffer, start, len(buffer) - start - 8, crc)

    @property
    def bytes_pending(self) -> int:
        """Bytes that are not durable yet."""
        with self._lock:
            return len(self._filling) + sum(map(len, self._unsynced))

    @property
    def durable_offset(self) -> int:
        """File offset up to which everything has been synced."""
        return self._synced_offset

    def write(self) -> None:
        """Hand everything appended so far to the kernel, without waiting for the disk.

        A process that is killed after this loses nothing; a machine that
        loses power may.

        Raises
        ------
        ClusterError
            The disk is full or broken; the file is cut back to its last good
            offset and the entries stay in memory for the next call.
        """
        with self._lock:
            if self._filling:
                self._unsynced.append(self._filling)
                self._filling = bytearray()
        while self._unwritten_from < len(self._unsynced):
            buffer = self._unsynced[self._unwritten_from]
            done = 0
            try:
                with memoryview(buffer) as view:
                    while done < len(view):
                        done += os.pwrite(self._descriptor, view[done:], self._offset + done)
            except OSError as error:
                self._cut_tail(buffer, done)
                self._check_place()
                raise ClusterError(f"journal {self.path} cannot be written: {error.strerror}") from error
            self._offset += done
            self._unwritten_from += 1

    def sync(self) -> None:
        """Wait until everything that was written is on the disk.

        Raises
        ------
        ClusterError
            The sync failed. Linux then forgets which pages were dirty, so all
            bytes since the last good sync are written again by the next `write`.
        LeaseHeldError
            The file is not the journal any more: what was written since the
            last good sync may be lost.
        """
        if self._unwritten_from == 0:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._offset = self._synced_offset
            self._unwritten_from = 0
            self._check_place()
            raise ClusterError(f"journal {self.path} cannot be synced: {error.strerror}") from error
        self._check_place()
        del self._unsynced[: self._unwritten_from]
        self._unwritten_from = 0
        self._synced_offset = self._offset

    def flush(self) -> int:
        """Write and sync.

        Returns
        -------
        int
            The file offset up to which everything is durable.
        """
        self.write()
        self.sync()
        return self._synced_offset

    def close(self) -> None:
        """Close the file; entries that were not flushed are dropped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_place(self) -> None:
        """Hold that whoever reads the journal reads this very file, to its end."""
        try:
            # Opened, not only looked up: that is when a network file system asks its server.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                present = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            found = "was removed"
        except OSError as error:
            raise ClusterError(f"journal {self.path} cannot be looked at: {error.strerror}") from error
        else:
            if _identity(present) != self._file:
                found = "is another start's by now"
            elif _is_sealed(present):
                found = "is being put into the results file by another process"
            else:
                return
        raise LeaseHeldError(
            f"journal {self.path} {found}: this master was silent for so long that it was taken for dead. It "
            "stops; what it had acknowledged is safe, and `keystone-mpi status` on the results file shows it"
        )

    def _cut_tail(self, buffer: bytearray, done: int) -> None:
        """Keep the whole frames among the `done` bytes of a buffer and cut off the torn one.

        Whole frames stay, because a reader may have told somebody of them.
        """
        whole = 0
        while done - whole >= 8:
            end = whole + 8 + _FRAME.unpack_from(buffer, whole)[0]
            if end > done:
                break
            whole = end
        if whole:
            self._unsynced[self._unwritten_from : self._unwritten_from + 1] = [buffer[:whole], buffer[whole:]]
            self._unwritten_from += 1
            self._offset += whole
        try:
            os.ftruncate(self._descriptor, self._offset)
        except OSError:
            pass  # not vital: readers stop at a torn frame and the next write covers it


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_sealed(status: os.stat_result) -> bool:
    return not status.st_mode & stat.S_IWUSR


def seal(path: Path) -> None:
    """Tell the journal's writer, if it lives after all, that nothing more is taken from it.

    Whoever recovers a journal seals it, reads it to its end, removes it: a
    writer that finds no seal *after* a sync knows that its bytes will be read.
    """
    try:
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o222)
    except OSError:
        pass  # somebody else's file, or no modes here: that the path is gone then has to tell it


def journal_identity(path: Path) -> tuple[int, int] | None:
    """Return which file is the journal; None: there is none that its writer may go on with."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return None if _is_sealed(status) else _identity(status)


def _pwrite_all(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], offset + done)


def read_journal(path: Path, offset: int = 0) -> Iterator[tuple[int, Entry]]:
    """Read entries, from `offset` to the last whole one.

    The file is streamed. It may be growing meanwhile: what was appended
    before the end is met is seen.

    Parameters
    ----------
    path : Path
        The journal; a missing file has no entries.
    offset : int
        0, or the end offset of an entry that was read before.

    Yields
    ------
    tuple of (int, Entry)
        The offset behind the entry, and the entry.

    Raises
    ------
    OutputError
        The file is not a journal, or a newer keystone_mpi wrote it.
    """
    decode = msgspec.msgpack.Decoder(Entry).decode
    for end, payload in _frames(path, offset):
        try:
            entry = decode(payload)
        except msgspec.DecodeError as error:
            # The checksum holds, so these bytes are what somebody meant to write.
            raise OutputError(
                f"{path}: the entry that ends at byte {end} is unknown here ({error}): "
                "written by a newer keystone_mpi; upgrade"
            ) from error
        yield end, entry


def read_head(path: Path) -> RunOpened | None:
    """Return the first entry.

    None when there is no journal, or it was cut before its first entry was
    complete (nothing can have been acknowledged then).
    """
    for _end, entry in read_journal(path):
        if isinstance(entry, RunOpened):
            return entry
        raise OutputError(
            f"{path}: the first entry is {type(entry).__name__}, not RunOpened: not a journal of ours"
        )
    return None


def _frames(path: Path, offset: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (end offset, payload) of every whole frame; stop at the first that is torn or corrupt."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        header = os.pread(descriptor, HEADER_BYTES, 0)
        _check_header(path, header)
        if len(header) < HEADER_BYTES:
            return
        position = max(offset, HEADER_BYTES)  # file offset of block[0]
        block = b""
        wanted = 0  # bytes that complete the frame at block[0]
        while True:
            if wanted > _READ_BYTES and position + len(block) + wanted > os.fstat(descriptor).st_size:
                return  # torn, or a damaged length
            fresh = os.pread(descriptor, max(_READ_BYTES, wanted), position + len(block))
            if not fresh:
                return
            block += fresh
            view = memoryview(block)
            start = 0
            wanted = 0
            while len(block) - start >= 8:
                length, crc = _FRAME.unpack_from(block, start)
                if length == 0:  # zeros, as a power loss leaves them; crc32(b"") is 0 too
                    return
                end = start + 8 + length
                if end > len(block):
                    wanted = end - len(block)
                    break
                payload = view[start + 8 : end]
                if zlib.crc32(payload) != crc:
                    return
                yield position + end, payload
                start = end
            del view
            block = block[start:]
            position += start
    finally:
        os.close(descriptor)


def _check_header(path: Path, header: bytes) -> None:
    if header[: len(MAGIC)] != MAGIC[: len(header)]:
        raise OutputError(f"{path} is not a journal of keystone_mpi (it starts with {header[:17]!r})")
    if len(header) < HEADER_BYTES:
        return
    (version,) = struct.unpack_from("<I", header, len(MAGIC))
    if version > JOURNAL_FORMAT:
        raise OutputError(
            f"{path} has journal format {version}, this keystone_mpi knows up to {JOURNAL_FORMAT}: "
            "written by a newer keystone_mpi; upgrade"
        )
    if version < 1:
        raise OutputError(f"{path} has journal format {version}: not a journal of keystone_mpi, or damaged")
