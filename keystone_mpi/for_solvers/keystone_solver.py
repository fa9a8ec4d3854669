"""Results and progress from a Python solver to keystone_mpi, in one line each.

    from keystone_solver import report_progress, report_result

    report_progress(0.4)                                  # 40 % done
    report_result(error_l2=1.2e-4, field=u)               # numbers, texts, lists, numpy arrays

Rule: only the standard library, any Python from 3.6, no MPI, and no numpy
unless an array is given. Started by nobody but yourself, both do nothing:
a script that calls them runs unchanged without keystone_mpi. It may be copied
beside a script; under keystone-mpi it can be imported in any case.

    report_result --> the file named by $KEYSTONE_RESULT: JSON, or .npz as soon as there is an array
    report_progress --> "KEYSTONE_PROGRESS 0.4" on standard output, at most twice a second

In an MPI program all ranks may call them; rank 0 is the one that is heard.
"""

import json
import os
import sys
import time
from typing import Any

__all__ = ["report_progress", "report_result"]

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "MV2_COMM_WORLD_RANK")
_SECONDS_BETWEEN = 0.5

_results: "dict[str, object]" = {}
_last_progress = [0.0]


def report_result(**values: object) -> None:
    """Give results back; call it once or several times, a later value of a name wins.

    Parameters
    ----------
    **values
        Numbers, texts, booleans, lists of numbers, dictionaries (their keys
        are joined with dots), numpy arrays and what converts to one.
    """
    path = os.environ.get("KEYSTONE_RESULT")
    if not path or _other_rank():
        return
    for name, value in values.items():
        _add(name, value)
    arrays = any(isinstance(value, _Array) for value in _results.values())
    data = _npz_bytes(_results) if arrays else _json_bytes(_results)
    # Renamed into place: a solver killed in the middle leaves the results of the call before.
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def report_progress(fraction: float) -> None:
    """Say how far the solver is; cheap enough for every time step.

    Parameters
    ----------
    fraction : float
        0 to 1.
    """
    if "KEYSTONE_RESULT" not in os.environ:
        return
    now = time.monotonic()
    if (now - _last_progress[0] < _SECONDS_BETWEEN and fraction < 1) or _other_rank():
        return
    _last_progress[0] = now
    stream = sys.__stdout__
    if stream is not None:
        stream.write(f"KEYSTONE_PROGRESS {float(fraction):.6g}\n")
        stream.flush()


def _other_rank() -> bool:
    for name in _RANK_VARIABLES:
        rank = os.environ.get(name, "")
        if rank.isdigit():
            return int(rank) > 0
    return False


class _Array:
    """An array as it is written to an .npz file: numpy's type string, shape, bytes in C order."""

    def __init__(self, descr: str, shape: "tuple[int, ...]", data: bytes) -> None:
        self.descr = descr
        self.shape = shape
        self.data = data


def _add(name: str, value: object) -> None:
    """Put one value into `_results`, flattened."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _add(f"{name}.{key}", inner)
        return
    _results[name] = _plain(value)


def _plain(value: Any) -> object:
    """Return an `_Array`, or what JSON can say."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        # A list of arrays is an array to come; numpy is there, since the arrays are.
        return _stacked(value) if any(isinstance(item, _Array) for item in items) else items
    if hasattr(value, "__array_interface__"):
        if not value.shape:
            return _plain(value.item())
        return _Array(value.dtype.str, tuple(value.shape), value.tobytes())
    if hasattr(value, "dtype") and hasattr(value, "item") and not getattr(value, "shape", ()):
        return _plain(value.item())  # a numpy scalar
    if hasattr(value, "__array__"):
        return _plain(value.__array__())
    if hasattr(value, "typecode"):  # array.array
        return value.tolist()
    if isinstance(value, (memoryview, range)):
        return list(value)
    if hasattr(value, "__float__"):
        return float(value)
    return str(value)


def _stacked(values: object) -> object:
    import numpy

    return _plain(numpy.asarray(values))


def _json_bytes(values: "dict[str, object]") -> bytes:
    return json.dumps(values).encode()


def _npz_bytes(values: "dict[str, object]") -> bytes:
    """Write an .npz, which is a zip of .npy files, without numpy; what is no array goes in as JSON."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, True) as archive:
        plain = {name: value for name, value in values.items() if not isinstance(value, _Array)}
        if plain:
            archive.writestr("results.json", _json_bytes(plain))
        for name, value in values.items():
            if isinstance(value, _Array):
                archive.writestr(name.replace("/", ".") + ".npy", _npy_bytes(value))
    return buffer.getvalue()


def _npy_bytes(array: _Array) -> bytes:
    header = f"{{'descr': {array.descr!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    padding = -(10 + len(header) + 1) % 64
    text = (header + " " * padding + "\n").encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.data
