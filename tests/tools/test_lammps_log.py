"""The thermo output in all its styles, whole or in pieces, with whatever stands in between."""

from __future__ import annotations

import struct

import pytest

from keystone_mpi.tools import lammps_log
from keystone_mpi.tools.arrays import ResultFormatError
from keystone_mpi.tools.lammps_log import LammpsLog

ONE_LINE = b"""\
LAMMPS (29 Sep 2021 - Update 2)
Step Temp is not a header here
Per MPI rank memory allocation (min/avg/max) = 3.119 | 3.119 | 3.119 Mbytes
Step Temp TotEng Press c_msd[4]
       0          1.2   -4.9803993   -5.2262345 0
WARNING: something odd (src/x.cpp:12)
      20   0.49481353   -4.9828947  0.011498583 1e-3
Loop time of 0.08 on 1 procs for 20 steps with 256 atoms
1 2 3 4 5
"""
SECOND = b"""\
Per MPI rank memory allocation (min/avg/max) = 3.119 | 3.119 | 3.119 Mbytes
   Step          Temp          TotEng         Press        c_msd[4]
        20   0.5   -4.98   0.01  0.001
        40   0.6   -4.97   0.02  0.002
Loop time of 0.08 on 1 procs for 20 steps with 256 atoms
"""
OTHER_COLUMNS = b"""\
Per MPI rank memory allocation (min/avg/max) = 3 | 3 | 3 Mbytes
Time Step Temp
0.1 40 0.7
Loop time of 0.08 on 1 procs for 20 steps with 256 atoms
"""
MULTI = b"""\
Per MPI rank memory allocation (min/avg/max) = 3 | 3 | 3 Mbytes
------------ Step              0 ----- CPU =            0 (sec) -------------
TotEng   =        -4.98 KinEng   =         1.79 Temp     =          1.2
PotEng   =        -6.77 Press    =        -5.22
------------ Step             20 ----- CPU =  0.001 (sec) -------------
TotEng   =        -4.99 KinEng   =         0.73 Temp     =          0.49
PotEng   =        -5.72 Press    =         0.01
Loop time of 0.08 on 1 procs for 20 steps with 256 atoms
"""
YAML = b"""\
Per MPI rank memory allocation (min/avg/max) = 3 | 3 | 3 Mbytes
---
keywords: ['Step', 'Temp', 'KinEng', ]
data:
  - [0, 1.2, 1.79, ]
  - [20, 0.49, 0.73, ]
...
Loop time of 0.08 on 1 procs for 20 steps with 256 atoms
"""


def read(*texts: bytes, whole_table: bool = True, size: int = 0) -> dict[str, object]:
    log = LammpsLog(whole_table=whole_table)
    data = b"".join(texts)
    for at in range(0, len(data), size or len(data)):
        log.feed(data[at : at + (size or len(data))])
    return dict(log.finish(""))


def numbers(value: object) -> tuple[tuple[int, ...], list[float]]:
    shape, data = value.shape, value.data  # type: ignore[attr-defined]
    return shape, list(struct.unpack(f"<{len(data) // 8}d", data))


@pytest.mark.parametrize("size", [0, 1, 7, 64])
def test_the_last_row_and_the_whole_table(size: int) -> None:
    found = read(ONE_LINE, size=size)
    assert found["Step"] == 20
    assert isinstance(found["Step"], int)
    assert (found["Temp"], found["TotEng"], found["c_msd[4]"]) == (0.49481353, -4.9828947, 1e-3)
    shape, values = numbers(found["thermo"])
    assert shape == (2, 5)
    assert values[:5] == [0, 1.2, -4.9803993, -5.2262345, 0]
    assert found["thermo_columns"] == "Step Temp TotEng Press c_msd[4]"


def test_only_the_last_row_unless_asked() -> None:
    assert set(read(ONE_LINE, whole_table=False)) == {"Step", "Temp", "TotEng", "Press", "c_msd[4]"}


def test_rows_of_several_runs_are_joined_while_their_columns_are_the_same() -> None:
    shape, values = numbers(read(ONE_LINE, SECOND)["thermo"])
    assert shape == (4, 5)
    assert values[::5] == [0, 20, 20, 40]
    found = read(ONE_LINE, SECOND, OTHER_COLUMNS)
    assert numbers(found["thermo"]) == ((1, 3), [0.1, 40, 0.7])
    assert found["Temp"] == 0.7
    assert "TotEng" not in found


@pytest.mark.parametrize("size", [0, 5])
def test_the_other_styles(size: int) -> None:
    found = read(MULTI, size=size)
    assert (found["Step"], found["TotEng"], found["Press"]) == (20, -4.99, 0.01)
    assert numbers(found["thermo"])[0] == (2, 6)
    found = read(YAML, size=size)
    assert (found["Step"], found["KinEng"]) == (20, 0.73)
    assert numbers(found["thermo"]) == ((2, 3), [0, 1.2, 1.79, 20, 0.49, 0.73])


def test_an_output_without_thermo_gives_nothing() -> None:
    assert read(b"hello\nStep Temp\n1 2\n") == {}


def test_a_table_beyond_all_bounds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lammps_log, "LARGEST_TABLE", 8)
    with pytest.raises(ResultFormatError, match="thermo table"):
        read(ONE_LINE)
    assert read(ONE_LINE, whole_table=False)["Step"] == 20
