"""/output: whole standard output of attempts, all in one dataset per stream.

Rule: plain bytes, readable by anything that reads HDF5; two columns of
/attempts say which stretch is whose. HDF5 compresses the chunks.

    zlib text of one attempt --decompress in pieces--> appended to /output/stdout
    /attempts/stdout_kept_offset, /attempts/stdout_kept_bytes
"""

from __future__ import annotations

import h5py
import numpy as np

from keystone_mpi.records.store import hdf5
from keystone_mpi.records.store.shards import unpack

STREAMS = ("stdout", "stderr")
_PIECE_BYTES = 4 << 20
_CHUNK_BYTES = 64 << 10


class OutputGroup:
    """Appends kept output.

    Parameters
    ----------
    file : h5py.File
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._pending: dict[str, bytearray] = {stream: bytearray() for stream in STREAMS}
        self._length: dict[str, int] = {
            stream: int(file[f"output/{stream}"].shape[0]) if f"output/{stream}" in file else 0
            for stream in STREAMS
        }

    def append(self, stream: str, packed: bytes) -> tuple[int, int]:
        """Unpack and append one attempt's output.

        Returns
        -------
        tuple of (int, int)
            Its offset and length in the dataset. Of damaged data, what could be unpacked is kept.
        """
        start = self._length[stream] + len(self._pending[stream])
        for piece in unpack(packed, _PIECE_BYTES):
            self._pending[stream] += piece
            if len(self._pending[stream]) >= _PIECE_BYTES:
                self._flush(stream)
        return start, self._length[stream] + len(self._pending[stream]) - start

    def close(self) -> None:
        """Write what is pending."""
        for stream in STREAMS:
            self._flush(stream)

    def _flush(self, stream: str) -> None:
        pending = self._pending[stream]
        if not pending:
            return
        group = self._file.require_group("output")
        name = f"{stream}_byte"
        start = self._length[stream]
        self._length[stream] += len(pending)
        if stream not in group:
            dimension = hdf5.make_dimension(
                group, name, self._length[stream], coordinate=False, chunk=1 << 20
            )
            dataset = hdf5.make_variable(
                group, stream, "u1", (dimension,), chunks=(_CHUNK_BYTES,), fill=0, compress=True
            )
            meaning = f"{stream} of attempts, one after the other; see attempts/{stream}_kept_offset"
            hdf5.set_text(dataset, "long_name", meaning)
        else:
            hdf5.resize_dimension(group[name], self._length[stream])
            group[stream].resize(self._length[stream], axis=0)
        hdf5.write_rows(group[stream], start, np.frombuffer(bytes(pending), np.uint8))
        pending.clear()
