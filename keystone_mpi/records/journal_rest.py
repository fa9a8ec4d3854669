"""What lies behind the last entry that can be read of a journal: a torn tail, or damage.

Rule: a master that is killed leaves whole frames and at most one that is not
complete. Everything else is damage, behind which acknowledged records may lie,
and is never thrown away.

    read_journal stops at OFFSET --rest_behind--> NOTHING | TORN    what a kill leaves
                                                  | ENTRIES         it was not read to its end
                                                  | DAMAGED         set the journal aside
"""

from __future__ import annotations

import enum
import os
import struct
import zlib
from pathlib import Path

from keystone_mpi.records.journal import HEADER_BYTES, journal_path, sync_folder

_FRAME = struct.Struct("<II")
_READ_BYTES = 1 << 20
_TAG_KEY = b"\xa4type"
"""First key of the msgpack map that every entry is."""
_TAG_LEADS = (8 + 1, 8 + 3)
"""Bytes between the start of a frame and that key: frame header, and the header of a small or large map."""


class Rest(enum.Enum):
    """What kind of bytes they are."""

    NOTHING = "nothing"
    TORN = "torn"
    """One frame whose end was never written, or zeros as a power loss leaves them."""
    ENTRIES = "entries"
    """A whole frame."""
    DAMAGED = "damaged"
    """Bytes that no kill leaves behind: a frame that fails its checksum, or whole frames further on."""


def rest_behind(path: Path, offset: int) -> tuple[Rest, int]:
    """Tell what lies behind `offset`, where reading a journal ended.

    Parameters
    ----------
    path : Path
        The journal; nobody writes it.
    offset : int
        0, or the end offset of the last entry that was read.

    Returns
    -------
    tuple of (Rest, int)
        What it is, and how many bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        start = max(offset, HEADER_BYTES)
        return _classify(descriptor, start, size), max(0, size - start)
    finally:
        os.close(descriptor)


def damaged_path(output_path: Path) -> Path:
    """Return the name that a damaged journal of an output is given."""
    return output_path.with_name(f"{journal_path(output_path).name}.damaged")


def set_damaged_aside(output_path: Path, offset: int) -> str:
    """Give the journal another name when it is damaged behind `offset`.

    Returns
    -------
    str
        What is lost, for people; empty: it is not damaged, and still there.
    """
    path = journal_path(output_path)
    rest, rest_bytes = rest_behind(path, offset)
    if rest is not Rest.DAMAGED:
        return ""
    target = damaged_path(output_path)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = target.with_name(f"{damaged_path(output_path).name}.{number}")
    os.rename(path, target)
    sync_folder(path.parent)
    return (
        f"{path.name} is damaged at byte {offset:,}: the {rest_bytes:,} bytes behind it are not in "
        f"{output_path.name}, so tasks that ended there run again; it is kept as {target.name}"
    )


def _classify(descriptor: int, start: int, size: int) -> Rest:
    left = size - start
    if left <= 0:
        return Rest.NOTHING
    if _is_frame(descriptor, start, size):
        return Rest.ENTRIES
    if left < _FRAME.size or _is_zero(descriptor, start, size):
        return Rest.TORN
    length, crc = _FRAME.unpack(os.pread(descriptor, _FRAME.size, start))
    if length <= left - _FRAME.size:
        return Rest.DAMAGED  # complete, and not what was written
    if _crc(descriptor, start + _FRAME.size, size) == crc:
        return Rest.DAMAGED  # the last frame, complete, of which only the length is damaged
    return Rest.DAMAGED if _holds_frame(descriptor, start + 1, size) else Rest.TORN


def _holds_frame(descriptor: int, start: int, size: int) -> bool:
    """Tell whether a whole frame begins anywhere from `start` on."""
    kept = b""
    position = start
    while position < size:
        fresh = os.pread(descriptor, _READ_BYTES, position)
        if not fresh:
            return False
        block = kept + fresh
        base = position - len(kept)
        found = block.find(_TAG_KEY)
        while found >= 0:
            for lead in _TAG_LEADS:
                at = base + found - lead
                if at >= start and _is_frame(descriptor, at, size):
                    return True
            found = block.find(_TAG_KEY, found + 1)
        position += len(fresh)
        kept = block[1 - len(_TAG_KEY) :]
    return False


def _is_frame(descriptor: int, at: int, size: int) -> bool:
    head = os.pread(descriptor, _FRAME.size, at)
    if len(head) < _FRAME.size:
        return False
    length, crc = _FRAME.unpack(head)
    stop = at + _FRAME.size + length
    return bool(length) and stop <= size and _crc(descriptor, at + _FRAME.size, stop) == int(crc)


def _crc(descriptor: int, start: int, stop: int) -> int:
    crc = 0
    while start < stop:
        data = os.pread(descriptor, min(_READ_BYTES, stop - start), start)
        if not data:
            break
        crc = zlib.crc32(data, crc)
        start += len(data)
    return crc


def _is_zero(descriptor: int, start: int, size: int) -> bool:
    while start < size:
        data = os.pread(descriptor, _READ_BYTES, start)
        if not data or data.count(0) != len(data):
            return not data
        start += len(data)
    return True
