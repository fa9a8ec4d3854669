"""Shards: values too large for a message, read from where the worker wrote them.

Rule: a value is taken only when it is all there and its checksum holds. What
cannot be read is remembered, so that `finish` leaves its shard file in place.

    OUT.shards/<shard>  offset, size, crc32  --read--> bytes | None
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from keystone_mpi.core.model import AttemptReport, ShardValue


def shards_path(output_path: Path) -> Path:
    """Return the folder of the shards that belong to an output file."""
    return output_path.with_name(output_path.name + ".shards")


def unpack(packed: bytes, piece_bytes: int = 4 << 20) -> Iterator[bytes]:
    """Decompress kept output piece by piece; of damaged data, what can be unpacked."""
    unpacker = zlib.decompressobj()
    data = packed
    while data:
        try:
            piece = unpacker.decompress(data, piece_bytes)
        except zlib.error:
            return
        if not piece and not unpacker.unconsumed_tail:
            return
        yield piece
        data = unpacker.unconsumed_tail


class ShardReader:
    """Reads values from the shard files of one output.

    Parameters
    ----------
    output_path : Path
        The HDF5 file whose shards these are.
    """

    def __init__(self, output_path: Path) -> None:
        self._folder = shards_path(output_path)
        self.unreadable: list[str] = []
        """Places that could not be read, for people."""

    def read(self, value: ShardValue) -> bytes | None:
        """Return the bytes of a value, None when they are not there or damaged."""
        data = self._find(value)
        if data is None:
            self.unreadable.append(f"{value.shard} at byte {value.offset}")
        return data

    def has_all(self, report: AttemptReport) -> bool:
        """Tell whether every large value of a report lies within its shard file already."""
        return all(
            self._size(value.shard) >= value.offset + value.size_bytes for value in report.large.values()
        )

    def _size(self, shard: str) -> int:
        try:
            return os.stat(self._path(shard)).st_size
        except OSError:
            return -1

    def _path(self, shard: str) -> Path:
        return self._folder / Path(shard).name  # a name, never a way out of the folder

    def _find(self, value: ShardValue) -> bytes | None:
        try:
            with open(self._path(value.shard), "rb") as file:
                file.seek(value.offset)
                data = file.read(value.size_bytes)
        except OSError:
            return None
        if len(data) != value.size_bytes or zlib.crc32(data) != value.crc32:
            return None
        return data
