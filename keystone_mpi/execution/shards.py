"""A slot's shard: where values go that are too large for a message.

Rule: append only, one writer per file; what a report names is on the disk
before the report is sent. The store folds shards into the results file.

    large array, packed output --> OUT.shards/e<epoch>-w<worker>-s<slot>.bin --> ShardValue(offset, size, crc)
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable

from keystone_mpi.core.model import ShardValue

LARGE_BYTES = 1 << 20
"""Values above this size go to the shard."""


class ShardWriter:
    """Appends values to one shard file, which is made with the first of them.

    Parameters
    ----------
    output_path : str
        Absolute path of the HDF5 file.
    name : str
        File name of the shard, unique to this writer within the run.
    """

    def __init__(self, output_path: str, name: str) -> None:
        self.output_path = output_path
        self._folder = f"{output_path}.shards"
        self._name = name
        self._fd = -1
        self._dirty = False

    def append(self, chunks: Iterable[bytes], dtype: str, shape: tuple[int, ...] = ()) -> ShardValue:
        """Write one value.

        Raises
        ------
        OSError
            The disk does not take it; what was written of it is cut off again.
        """
        fd = self._open()
        offset = os.lseek(fd, 0, os.SEEK_END)
        size_bytes = 0
        crc32 = 0
        try:
            for chunk in chunks:
                crc32 = zlib.crc32(chunk, crc32)
                size_bytes += len(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
        except OSError:
            os.ftruncate(fd, offset)
            raise
        self._dirty = True
        return ShardValue(self._name, offset, size_bytes, crc32, dtype, shape)

    def sync(self) -> None:
        """Put on the disk what was appended since the last call."""
        if self._dirty:
            os.fsync(self._fd)
            self._dirty = False

    def _open(self) -> int:
        if self._fd < 0:
            os.makedirs(self._folder, exist_ok=True)
            path = os.path.join(self._folder, self._name)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self._fd
