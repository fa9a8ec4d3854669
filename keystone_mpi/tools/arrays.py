"""numpy's file formats and nested lists, read without numpy into `ArrayValue`.

Rule: slot processes must start in milliseconds, so numpy is not imported here;
what comes out is C order, little endian and of a type that netCDF4 knows.

    .npy header --> dtype, order, shape --> swap bytes, transpose, widen --> ArrayValue | scalar
    .npz = zip of .npy;  [[1, 2], [3, 4]] --> ArrayValue

Object arrays and records are refused: the first would need pickle. Complex
arrays come out as two, ``<name>.real`` and ``<name>.imag``.
"""

from __future__ import annotations

import array
import ast
import io
import json
import math
import struct
import sys
from typing import Any, Literal

from keystone_mpi.core.model import ArrayValue

_MAGIC = b"\x93NUMPY"
_Code = Literal["b", "h", "i", "q", "B", "H", "I", "Q", "f", "d"]
_CODES: dict[str, _Code] = {
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f4": "f",
    "f8": "d",
}


class ResultFormatError(ValueError):
    """A result cannot be read; the text is one line for people."""


def array_from_numbers(values: list[Any] | tuple[Any, ...]) -> ArrayValue | None:
    """Make an array of nested lists of numbers; None when they are not numbers in a regular shape."""
    shape: list[int] = []
    flat: list[Any] = list(values)
    shape.append(len(flat))
    while flat and isinstance(flat[0], list | tuple):
        width = len(flat[0])
        below: list[Any] = []
        for row in flat:
            if not isinstance(row, list | tuple) or len(row) != width:
                return None
            below.extend(row)
        shape.append(width)
        flat = below
    kinds = set(map(type, flat))
    if kinds == {bool}:
        return ArrayValue("|i1", tuple(shape), bytes(flat))
    if kinds == {int}:
        try:
            return ArrayValue("<i8", tuple(shape), _little(array.array("q", flat)))
        except OverflowError:
            kinds = {float}
    if kinds <= {int, float, type(None)}:
        numbers = array.array("d", (math.nan if value is None else float(value) for value in flat))
        return ArrayValue("<f8", tuple(shape), _little(numbers))
    return None


def _little(numbers: array.array[Any]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def read_npz(data: bytes, where: str) -> dict[str, Any]:
    """Read all members of an ``.npz``; names lose their ``.npy``.

    A member ``results.json`` (`keystone_solver` writes one) is an object of further values.
    """
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError, EOFError) as problem:
        raise ResultFormatError(f"{where}: not a sound .npz: {problem}") from None
    plain = members.pop("results.json", None)
    values = {
        name.removesuffix(".npy"): read_npy(content, f"{where}: {name}") for name, content in members.items()
    }
    if plain is not None:
        try:
            values.update(json.loads(plain))
        except (ValueError, TypeError, RecursionError) as problem:
            raise ResultFormatError(f"{where}: results.json: {problem}") from None
    return values


def read_npy(data: bytes, where: str) -> ArrayValue | dict[str, Any] | bool | int | float | str:
    """Read an ``.npy``: a Python value of an array without dimensions, otherwise an array.

    Parameters
    ----------
    data : bytes
        The whole file.
    where : str
        How error texts name it.

    Raises
    ------
    ResultFormatError
        It is torn, or holds objects, records or another type that has no place in the results file.
    """
    descr, fortran_order, shape, body = _header(data, where)
    count = math.prod(shape)
    order, kind, size = _type_of(descr, where)
    if len(body) < count * size:
        raise ResultFormatError(f"{where}: ends after {len(body)} of {count * size} bytes")
    body = body[: count * size]
    if kind in ("U", "S"):
        return _strings(body, kind, size, order, shape, where)
    if kind == "c":
        parts = _swap(body, order, size // 2)
        view = memoryview(parts).cast(_CODES[f"f{size // 2}"])
        real, imaginary = view[::2].tobytes(), view[1::2].tobytes()
        return {
            "real": _numbers(real, f"f{size // 2}", shape, fortran_order),
            "imag": _numbers(imaginary, f"f{size // 2}", shape, fortran_order),
        }
    if kind == "f" and size == 2:
        wide = struct.unpack(f"{'>' if order == '>' else '<'}{count}e", body)
        return _numbers(_little(array.array("f", wide)), "f4", shape, fortran_order)
    if kind == "b":
        if not shape:
            return bool(body[0])
        return _numbers(body, "i1", shape, fortran_order)
    return _numbers(_swap(body, order, size), f"{kind}{size}", shape, fortran_order)


def _header(data: bytes, where: str) -> tuple[str, bool, tuple[int, ...], bytes]:
    if not data.startswith(_MAGIC) or len(data) < 12:
        raise ResultFormatError(f"{where}: not an .npy file")
    if data[6] == 1:
        length, start = int.from_bytes(data[8:10], "little"), 10
    elif data[6] in (2, 3):
        length, start = int.from_bytes(data[8:12], "little"), 12
    else:
        raise ResultFormatError(f"{where}: .npy format version {data[6]} is not known")
    if len(data) < start + length or length > 1 << 16:
        raise ResultFormatError(f"{where}: the .npy header is torn")
    try:
        header = ast.literal_eval(data[start : start + length].decode("utf-8").strip())
        descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, UnicodeDecodeError, RecursionError, MemoryError):
        raise ResultFormatError(f"{where}: the .npy header is malformed") from None
    if not isinstance(descr, str):
        raise ResultFormatError(f"{where}: arrays of records are not results; save each field on its own")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ResultFormatError(f"{where}: the .npy header is malformed")
    return descr, bool(fortran_order), shape, data[start + length :]


def _type_of(descr: str, where: str) -> tuple[str, str, int]:
    order, kind, digits = descr[:1], descr[1:2], descr[2:]
    if kind == "O":
        raise ResultFormatError(f"{where}: object arrays are not read (they would need pickle)")
    size = int(digits) if digits.isdigit() else 0
    known = f"{kind}{size}" in _CODES or f"{kind}{size}" in ("f2", "b1", "c8", "c16") or kind in ("U", "S")
    if not known:
        raise ResultFormatError(f"{where}: arrays of type {descr!r} are not read; save numbers or booleans")
    return order, kind, size * 4 if kind == "U" else size


def _swap(body: bytes, order: str, size: int) -> bytes:
    if order != ">" or size == 1:
        return body
    numbers = array.array({2: "h", 4: "i", 8: "q"}[size])
    numbers.frombytes(body)
    numbers.byteswap()
    return numbers.tobytes()


def _numbers(body: bytes, name: str, shape: tuple[int, ...], fortran_order: bool) -> ArrayValue | int | float:
    if not shape:
        value: int | float = struct.unpack(f"<{_CODES[name]}", body)[0]
        return value
    if fortran_order and len(shape) > 1:
        body = _c_order(body, _CODES[name], shape)
    return ArrayValue(f"{'|' if name.endswith('1') else '<'}{name}", shape, body)


def _c_order(body: bytes, code: _Code, shape: tuple[int, ...]) -> bytes:
    """Reorder a Fortran array: every shape[0]-th number belongs to one first index."""
    if len(shape) == 1:
        return body
    view = memoryview(body).cast(code)
    return b"".join(_c_order(view[first :: shape[0]].tobytes(), code, shape[1:]) for first in range(shape[0]))


def _strings(body: bytes, kind: str, size: int, order: str, shape: tuple[int, ...], where: str) -> str:
    if math.prod(shape) != 1:
        raise ResultFormatError(f"{where}: arrays of strings are not read; save numbers or a single string")
    if kind == "S":
        return body[:size].rstrip(b"\0").decode("utf-8", "replace")
    return body[:size].decode("utf-32-be" if order == ">" else "utf-32-le", "replace").rstrip("\0")
