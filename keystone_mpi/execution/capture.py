"""What a solver prints: counted, its end kept, the rest watched or packed, never all of it held.

Rule: memory is bounded whatever a solver prints; the pipe is always emptied,
so a solver never hangs on a full one.

    pipe --> read_some --> byte count
                       --> window (the last bytes)
                       --> watcher (regexes of the recipe)
                       --> PackedOutput (zlib, in memory, then in an unlinked file)
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator

PACKED_INLINE_BYTES = 1 << 20
"""Packed output up to this size travels in the report."""
_CHUNK_BYTES = 1 << 16
PROGRESS_MARK = b"KEYSTONE_PROGRESS"
"""A line of this and a number from 0 to 1 says how far a solver is."""
_PROGRESS_LINE_BYTES = 64
PROGRESS_EVERY_S = 0.5
"""A solver's progress is passed on no more often."""


class OutputStream:
    """One of a slot's two output pipes; the pipe outlives the attempts as long as none leaves a process.

    Parameters
    ----------
    window_bytes : int
        How much of the end is kept.
    """

    __slots__ = (
        "_limit",
        "_next_progress",
        "_packed",
        "_watcher",
        "_window",
        "progress",
        "read_fd",
        "total_bytes",
        "write_fd",
    )

    def __init__(self, window_bytes: int) -> None:
        self._limit = window_bytes
        self._window = bytearray()
        self._watcher: Callable[[bytes], None] | None = None
        self._packed: PackedOutput | None = None
        self.total_bytes = 0
        self.progress: float | None = None
        """What the solver printed last about how far it is, until somebody takes it."""
        self._next_progress = 0.0
        self.read_fd = -1
        self.write_fd = -1
        self.open()

    def open(self) -> None:
        """Make the pipe; the solver's end is inherited by spawn actions only."""
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_fd, False)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read_fd)
        os.close(self.write_fd)

    def begin(self, watcher: Callable[[bytes], None] | None, packed: PackedOutput | None) -> None:
        """Forget the previous attempt's output."""
        if self.total_bytes:
            self._window = bytearray()
            self.total_bytes = 0
        self.progress = None
        self._watcher = watcher
        self._packed = packed

    def read_some(self) -> bool:
        """Take one chunk from the pipe; False when it is empty."""
        try:
            chunk = os.read(self.read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            return False
        self.total_bytes += len(chunk)
        window = self._window
        window += chunk
        if window.rfind(PROGRESS_MARK, max(0, len(window) - len(chunk) - _PROGRESS_LINE_BYTES)) >= 0:
            self._read_progress(len(chunk))
        if len(window) > 2 * self._limit:
            del window[: -self._limit]
        if self._watcher is not None:
            self._watcher(chunk)
        if self._packed is not None:
            self._packed.add(chunk)
        return True

    def _read_progress(self, size: int) -> None:
        """Look at the last whole progress line that the new bytes end or hold."""
        text = bytes(self._window[-size - _PROGRESS_LINE_BYTES :])
        for line in reversed(text.split(b"\n")[:-1]):
            if line.startswith(PROGRESS_MARK):
                try:
                    fraction = float(line[len(PROGRESS_MARK) :].lstrip(b" =:\t"))
                except ValueError:
                    continue
                if fraction == fraction:
                    self.progress = min(1.0, max(0.0, fraction))
                return

    def take_progress(self, now: float) -> tuple[float | None, float]:
        """Return the progress that is to be told now, and the monotonic time to ask again."""
        if self.progress is None:
            return None, math.inf
        if now < self._next_progress:
            return None, self._next_progress
        fraction, self.progress = self.progress, None
        self._next_progress = now + PROGRESS_EVERY_S
        return fraction, math.inf

    def drain(self) -> None:
        """Take all that is in the pipe now; for when nobody writes any more."""
        while self.read_some():
            pass

    def tail(self, limit_bytes: int) -> bytes:
        """Return the end of the output, at most `limit_bytes` and the window's size."""
        if not self.total_bytes:
            return b""
        return bytes(self._window[-min(limit_bytes, self._limit) :])

    def tail_text(self, limit_bytes: int) -> str:
        """Return the end of the output as text that every file format takes."""
        if not self.total_bytes:
            return ""
        data = self.tail(limit_bytes)
        if len(data) < self.total_bytes:
            # Do not begin in the middle of a character.
            start = 0
            while start < min(4, len(data)) and data[start] & 0xC0 == 0x80:
                start += 1
            data = data[start:]
        return data.decode("utf-8", "replace").replace("\0", "\u2400")

    def last_line(self) -> str:
        """Return the last line that is not blank, shortened; empty when there is none."""
        for line in reversed(self.tail_text(4096).splitlines()):
            if line.strip():
                return line.strip()[:300]
        return ""


class PackedOutput:
    """The whole output of one stream, compressed as it comes.

    Parameters
    ----------
    folder : str
        Private folder on the node's own disk, used beyond `PACKED_INLINE_BYTES`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._packer = zlib.compressobj(4)
        self._head = bytearray()
        self._file = -1
        self._ended = False
        self.problem = ""
        """Why the output is not kept after all; empty: it is."""

    def add(self, chunk: bytes) -> None:
        """Append a chunk of output."""
        if not self.problem:
            self._keep(self._packer.compress(chunk))

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        try:
            if self._file < 0:
                self._head += data
                if len(self._head) <= PACKED_INLINE_BYTES:
                    return
                path = os.path.join(self._folder, f"output-{id(self)}")
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                os.unlink(path)
                data = bytes(self._head)
                self._head.clear()
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as problem:
            self.problem = f"output not kept: {problem.strerror} ({self._folder})"
            self._head.clear()
            self.discard()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if not self.problem:
                self._keep(self._packer.flush())

    def inline(self) -> bytes | None:
        """Return all of it when it is small enough for a report, else None."""
        self._end()
        return bytes(self._head) if self._file < 0 else None

    def chunks(self) -> Iterator[bytes]:
        """Read back what went to the file."""
        self._end()
        os.lseek(self._file, 0, os.SEEK_SET)
        while chunk := os.read(self._file, 1 << 20):
            yield chunk

    def discard(self) -> None:
        """Free the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
