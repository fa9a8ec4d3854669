"""Shards: values too large for a message, read from where the worker wrote them.

Rule: a value is taken only when it is all there and its checksum holds. One
that is missing or damaged is remembered, so that `finish` leaves its shard file
in place. A disk that does not answer says nothing of the value: it is an error,
so that its address is kept and it is tried again.

    OUT.shards/<shard>  offset, size, crc32  --read--> bytes | None (missing, damaged)
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.core.model import AttemptReport, ShardValue


def shards_path(output_path: Path) -> Path:
    """Return the folder of the shards that belong to an output file."""
    return output_path.with_name(output_path.name + ".shards")


def describe_lost(output_path: Path, unreadable: str) -> str:
    """Say which large values a file had to do without.

    Parameters
    ----------
    output_path : Path
    unreadable : str
        The file's attribute ``unreadable_shards``, a JSON list of places; may be empty.
    """
    places = msgspec.json.decode(unreadable, type=list[str]) if unreadable else []
    if not places:
        return ""
    return (
        f"{len(places)} large value{'s are' if len(places) > 1 else ' is'} missing or damaged in "
        f"{shards_path(output_path).name} and so not in {output_path.name}: {', '.join(places[:3])}"
        f"{' ...' if len(places) > 3 else ''}"
    )


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
    only_looks : bool
        What cannot be read now is shown as missing: nothing depends on it.
    """

    def __init__(self, output_path: Path, *, only_looks: bool = False) -> None:
        self._folder = shards_path(output_path)
        self._only_looks = only_looks
        self.unreadable: list[str] = []
        """Places where values are missing or damaged, for people."""

    def read(self, value: ShardValue) -> bytes | None:
        """Return the bytes of a value, None when they are not there or damaged.

        Raises
        ------
        ClusterError
            The disk does not say.
        """
        try:
            data = self._find(value)
        except OSError as error:
            if self._only_looks:
                return None
            raise ClusterError(
                f"{self._path(value.shard)}: the value at byte {value.offset:,} cannot be read: "
                f"{error.strerror} (check the mount; the same command again continues; if the file is lost "
                "for good, remove it)"
            ) from error
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
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) != value.size_bytes or zlib.crc32(data) != value.crc32:
            return None
        return data
