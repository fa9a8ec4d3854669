"""OpenFOAM's dictionaries filled in, and its logs and tables read back; no OpenFOAM needed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.checking import TemplateChecker
from keystone_mpi.tools.arrays import ResultFormatError
from keystone_mpi.tools.openfoam_case import case_files, case_templates, digest_of_case
from keystone_mpi.tools.openfoam_output import OpenfoamOutput
from keystone_mpi.tools.templates import compile_template

FV_SOLUTION = """\
// a comment with endTime 3; and { braces
/* another { */
solvers
{
    p { solver PCG; tolerance 1e-06; relTol 0.05; }
    "(U|k)"
    {
        solver          smoothSolver;
        tolerance       1e-05;   // of U
    }
    #include "more"
}
vector (1 2 (3 4));
nu              [0 2 -1 0 0 0 0] 0.01;
endTime 0.5;
code #{ if (a < b) { return; } #};
"""


def make_case(folder: Path) -> Path:
    (folder / "system").mkdir(parents=True)
    (folder / "0").mkdir()
    (folder / "system" / "fvSolution").write_text(FV_SOLUTION)
    (folder / "system" / "controlDict").write_text("endTime 1;\ndeltaT <<dt:.3f>>; // {x}\n")
    (folder / "0" / "U").write_text("internalField uniform (0 0 0);\n")
    for name in ("processor0/0", "postProcessing/probes", ".git"):
        (folder / name).mkdir(parents=True)
        (folder / name / "U").write_text("old")
    (folder / "log.icoFoam").write_text("old")
    (folder / "mesh.bin").write_bytes(b"\xff\xfe<<dt>>")
    return folder


def checker() -> TemplateChecker:
    return TemplateChecker(("dt", "nu"), {"dt": 0.1, "nu": 1})


def rendered(case: Path, entries: dict[str, object], **values: object) -> dict[str, str]:
    rules = case_templates(case, entries, checker(), "tools.openfoam.set")
    return {name: compile_template(rule.text).render(values) for name, rule in rules.items()}


def test_a_case_is_what_no_run_left(tmp_path: Path) -> None:
    case = make_case(tmp_path / "case")
    assert sorted(map(str, case_files(case))) == [
        "0/U",
        "mesh.bin",
        "system/controlDict",
        "system/fvSolution",
    ]
    before = digest_of_case(case)
    (case / "log.blockMesh").write_text("new")
    assert digest_of_case(case) == before
    (case / "0" / "U").write_text("internalField uniform (1 0 0);\n")
    assert digest_of_case(case) != before


def test_placeholders_and_entries_are_filled_in(tmp_path: Path) -> None:
    case = make_case(tmp_path / "case")
    texts = rendered(
        case,
        {
            "system/fvSolution:solvers/p/tolerance": "{dt}",
            "system/fvSolution:solvers/(U|k)/tolerance": 1e-9,
            "system/fvSolution:nu": "[0 2 -1 0 0 0 0] {nu}",
            "system/fvSolution:vector": [1, 2, 3],
            "system/fvSolution:endTime": "{dt:.1e}",
            "system/controlDict:endTime": True,
        },
        dt=0.25,
        nu=3,
    )
    assert sorted(texts) == ["system/controlDict", "system/fvSolution"]
    assert texts["system/controlDict"] == "endTime true;\ndeltaT 0.250; // {x}\n"
    expected = (
        FV_SOLUTION.replace("tolerance 1e-06", "tolerance 0.25")
        .replace("1e-05;   // of U", "1e-09;   // of U")
        .replace("[0 2 -1 0 0 0 0] 0.01", "[0 2 -1 0 0 0 0] 3")
        .replace("(1 2 (3 4))", "(1 2 3)")
        .replace("endTime 0.5", "endTime 2.5e-01")
    )
    assert texts["system/fvSolution"] == expected


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("system/fvSolution:endTme", 1, 'no entry endTme (did you mean "endTime"?)'),
        ("system/fvSolution:solvers/q/tolerance", 1, "no entry q in solvers"),
        ("system/fvSolution:solvers", 1, "solvers is a dictionary"),
        ("system/fvSolution:endTime/x", 1, "endTime is a value"),
        ("system/fvSoluton:endTime", 1, 'did you mean "system/fvSolution"?'),
        ("system/fvSolution", 1, "allowed is file:entry"),
        ("../x:endTime", 1, "the case has no file"),
        ("system/fvSolution:endTime", "{nuu}", "{nuu} is no parameter"),
        ("system/fvSolution:endTime", {}, "allowed are a number, a text or a vector"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, key: str, value: object, said: str) -> None:
    with pytest.raises(SweepFileError) as caught:
        rendered(make_case(tmp_path / "case"), {key: value})
    assert said in str(caught.value)


def test_an_unknown_placeholder_is_said_with_its_line(tmp_path: Path) -> None:
    case = make_case(tmp_path / "case")
    (case / "0" / "U").write_text("a;\nb <<dtt>>;\n")
    with pytest.raises(SweepFileError, match=r"line 2.*dtt"):
        rendered(case, {})


LOG = b"""\
Time = 0.1

Courant Number mean: 0.2 max: 0.85
smoothSolver:  Solving for Ux, Initial residual = 0.5, Final residual = 1e-06, No Iterations 3
DICPCG:  Solving for p, Initial residual = 1, Final residual = 1e-07, No Iterations 35
time step continuity errors : sum local = 5e-09, global = 1e-18, cumulative = 1e-17
DICPCG:  Solving for p, Initial residual = 0.25, Final residual = 1e-07, No Iterations 30
ExecutionTime = 0.07 s  ClockTime = 1 s

Time = 0.2

smoothSolver:  Solving for Ux, Initial residual = 0.125, Final residual = 1e-06, No Iterations 3
DICPCG:  Solving for p, Initial residual = 0.0625, Final residual = 1e-07, No Iterations 30
ExecutionTime = 0.09 s  ClockTime = 1 s
End
"""


def array(value: object) -> list[list[float]]:
    shape, data = value.shape, value.data  # type: ignore[attr-defined]
    flat = list(struct.unpack(f"<{len(data) // 8}d", data))
    return [flat[at : at + shape[1]] for at in range(0, len(flat), shape[1])]


def test_logs_and_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "log.icoFoam").write_bytes(LOG)
    probes = tmp_path / "postProcessing" / "probes"
    for time, text in (
        ("0", "# Probe 0 (0.05 0.05 0)\n#   Time\n 0.1 (1 2 3) (4 5 6)\n 0.2 (1 2 3) (4 5 7)\n"),
        ("0.2", "# Probe 0\n 0.2 (9 2 3) (4 5 6)\n 0.3 (9 2 3) (4 5 6)\n"),
    ):
        (probes / time).mkdir(parents=True)
        (probes / time / "U").write_text(text)
    lines = tmp_path / "postProcessing" / "lines"
    for time in ("0.1", "0.2"):
        (lines / time).mkdir(parents=True)
        (lines / time / "centre_U.xy").write_text(f"0 {time} 0 0\n1 {time} 0 0\n")
        (lines / time / "centre.csv").write_text(f"x,p\n0,{time}\n")
    forces = tmp_path / "postProcessing" / "forces" / "0"
    forces.mkdir(parents=True)
    (forces / "force.dat").write_text("# Force\n0.1 1 2 3\n0.2 1 2 4\n")
    (forces / "notes.txt").write_text("not a table\n")
    output = OpenfoamOutput(history=True)
    found = dict(output.finish(str(tmp_path)))
    assert found["residual.Ux"] == 0.125
    assert found["residual.p"] == 0.0625
    assert found["residuals.p"] == [1.0, 0.0625]
    assert (found["time"], found["courant_max"], found["continuity"]) == (0.2, 0.85, 5e-09)
    assert found["execution_time_s"] == 0.09
    assert array(found["probes.U"]) == [
        [0.1, 1, 2, 3, 4, 5, 6],
        [0.2, 9, 2, 3, 4, 5, 6],
        [0.3, 9, 2, 3, 4, 5, 6],
    ]
    assert array(found["lines.centre_U"]) == [[0, 0.2, 0, 0], [1, 0.2, 0, 0]]
    assert array(found["lines.centre"]) == [[0, 0.2]]
    assert array(found["forces.force"]) == [[0.1, 1, 2, 3], [0.2, 1, 2, 4]]
    assert not any("notes" in name for name in found)


def test_standard_output_is_a_log_too(tmp_path: Path) -> None:
    output = OpenfoamOutput()
    for at in range(0, len(LOG), 17):
        output.feed(LOG[at : at + 17])
    assert output.finish(str(tmp_path))["residual.p"] == 0.0625


def test_an_application_that_died_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "log.icoFoam").write_text(
        "Time = 1\n\n\n--> FOAM FATAL ERROR: \ncannot find file\n\nfile: U at line 3.\n\n    From f\n"
    )
    with pytest.raises(ResultFormatError, match=r"FOAM FATAL ERROR: cannot find file file: U at line 3\."):
        OpenfoamOutput().finish(str(tmp_path))
