"""``where`` and ``derived``: what Python would say of each point, without running any Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.expressions import PointError, compile_expression

KINDS = {"n": "int", "m": "int", "x": "float", "flag": "bool", "solver": "str"}
PYTHON = {
    **{
        name: getattr(math, name)
        for name in ("sqrt", "exp", "log", "log10", "sin", "cos", "tan", "floor", "ceil")
    },
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
    "pi": math.pi,
    "e": math.e,
    "true": True,
    "false": False,
}


def columns_of(rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    solver = np.empty(len(rows), dtype=object)
    solver[:] = [row["solver"] for row in rows]
    return {
        "n": np.array([row["n"] for row in rows], np.int64),
        "m": np.array([row["m"] for row in rows], np.int64),
        "x": np.array([row["x"] for row in rows], np.float64),
        "flag": np.array([row["flag"] for row in rows], np.bool_),
        "solver": solver,
    }


def value(text: str, **names: object) -> object:
    kinds = {
        name: {bool: "bool", int: "int", float: "float", str: "str"}[type(v)] for name, v in names.items()
    }
    columns = {}
    for name, item in names.items():
        column = np.empty(1, dtype=object if isinstance(item, str) else type(item))
        column[0] = item
        columns[name] = column
    return compile_expression(text, kinds, "sweep.where").evaluate(columns, 1).tolist()[0]


numbers = st.sampled_from(["n", "m", "x", "0", "1", "2", "7", "0.5", "3.25", "pi"])


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    comparison = st.builds(
        "{} {} {}".format, inner, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), inner
    ).map(lambda text: f"({text})")
    condition = st.one_of(
        comparison,
        st.builds("({} {} {})".format, comparison, st.sampled_from(["and", "or"]), comparison),
        st.builds("(not {})".format, comparison),
        st.builds("({} < {} <= {})".format, inner, inner, inner),
        st.builds("({} in [{}, {}])".format, inner, inner, inner),
        st.sampled_from(["flag", "(solver == 'cg')", "(solver in ['cg', \"lu\"])", "(solver != 'lu')"]),
    )
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner),
        st.builds("(-{})".format, inner),
        st.builds("({} if {} else {})".format, inner, condition, inner),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner),
        st.builds("{}({})".format, st.sampled_from(["abs", "floor", "ceil", "round", "sqrt"]), inner),
        st.builds("({} ** 2)".format, inner),
    )


texts = st.recursive(numbers, compound, max_leaves=8).filter(lambda text: text not in ("0", "1", "2", "7"))
rows_of_values = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.integers(-6, 6),
            "m": st.integers(0, 40),
            "x": st.sampled_from([-2.5, -1.0, 0.0, 0.1, 0.5, 3.0]),
            "flag": st.booleans(),
            "solver": st.sampled_from(["cg", "lu", "qr"]),
        }
    ),
    min_size=1,
    max_size=6,
)


def python_says(text: str, row: dict[str, object]) -> object:
    try:
        return eval(text, {"__builtins__": {}}, {**PYTHON, **row})
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        return error


@settings(max_examples=250, deadline=None)
@given(text=texts, rows=rows_of_values)
def test_it_says_what_python_says_of_each_point(text: str, rows: list[dict[str, object]]) -> None:
    expression = compile_expression(text, KINDS, "sweep.where")
    expected = [python_says(text, row) for row in rows]
    failures = [position for position, result in enumerate(expected) if isinstance(result, Exception)]
    if failures:
        with pytest.raises(PointError) as caught:
            expression.evaluate(columns_of(rows), len(rows))
        assert caught.value.position == failures[0]
        return
    found = expression.evaluate(columns_of(rows), len(rows))
    for ours, theirs in zip(found.tolist(), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-13, abs=1e-13), text


@settings(max_examples=60, deadline=None)
@given(text=texts, rows=rows_of_values)
def test_one_point_and_a_column_have_the_same_bits(text: str, rows: list[dict[str, object]]) -> None:
    expression = compile_expression(text, KINDS, "sweep.where")
    columns = columns_of(rows)
    try:
        together = expression.evaluate(columns, len(rows))
    except PointError:
        return
    alone = [
        expression.evaluate({name: column[i : i + 1] for name, column in columns.items()}, 1)
        for i in range(len(rows))
    ]
    assert together.tobytes() == np.concatenate(alone).tobytes()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("2 ** 62", 2**62),
        ("2 ** 100", 2.0**100),
        ("n ** 3", 1000),
        ("n ** m", 10.0**3),
        ("7 // 2", 3),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("round(2.5)", 2),
        ("round(x, 2)", 0.12),
        ("flag + flag", 2),
        ("flag * 1.5", 1.5),
        ("not flag", False),
        ("solver == 'cg' and n in [10, 20]", True),
        ("n not in (10, 20)", False),
        ("'fine' if n > 5 else 'coarse'", "fine"),
        ("1 < n < 20 < 30", True),
        ("log10(1000)", 3.0),
        ("min(n, x, m)", 0.125),
        ("+n", 10),
        ("true and not false", True),
        ("\n n\n > 3 ", True),
    ],
)
def test_the_language(text: str, result: object) -> None:
    found = value(text, n=10, m=3, x=0.125, flag=True, solver="cg")
    assert found == pytest.approx(result) if isinstance(result, float) else found == result
    assert type(found) is type(result)


def test_a_parameter_wins_over_the_constant_of_its_name() -> None:
    assert value("e * 2", e=3) == 6


def test_only_what_decides_is_evaluated() -> None:
    expression = compile_expression("n != 0 and 6 / n < 3", {"n": "int"}, "sweep.where")
    assert expression.evaluate({"n": np.array([0, 1, 2, 3, 0])}, 5).tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]
    expression = compile_expression("1 / n if n > 0 else -1.0", {"n": "int"}, "sweep.derived.h")
    assert expression.evaluate({"n": np.array([0, 4])}, 2).tolist() == [-1.0, 0.25]
    expression = compile_expression("n == 0 or 6 // n == 2", {"n": "int"}, "sweep.where")
    assert expression.evaluate({"n": np.array([0, 3, 1])}, 3).tolist() == [True, True, False]


def test_whole_numbers_never_wrap() -> None:
    big = 3_037_000_500
    expression = compile_expression("n * n", {"n": "int"}, "sweep.where")
    assert expression.evaluate({"n": np.array([2, big - 1])}, 2).tolist() == [4, (big - 1) ** 2]
    with pytest.raises(PointError, match="too large for 64 bits") as caught:
        expression.evaluate({"n": np.array([2, big])}, 2)
    assert caught.value.position == 1


def test_a_bound_that_is_too_careful_is_no_error() -> None:
    expression = compile_expression("n * m", {"n": "int", "m": "int"}, "sweep.where")
    columns = {"n": np.array([2**40, 1]), "m": np.array([1, 2**40])}
    assert expression.evaluate(columns, 2).tolist() == [2**40, 2**40]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 / n", "division by zero"),
        ("5 % n", "division by zero"),
        ("5.0 // n", "division by zero"),
        ("log(n)", "log of zero"),
        ("sqrt(n - 1)", "sqrt of a value outside its domain"),
        ("n ** -1", "zero to a negative power"),
        ("exp(n + 1000)", "a result too large for a number (in exp)"),
        ("(n + 10.0) ** 400", "a result too large for a number (in power)"),
        ("floor(n + 1e300)", "too large for 64 bits"),
    ],
)
def test_a_point_without_a_result_is_told(text: str, problem: str) -> None:
    with pytest.raises(PointError) as caught:
        value(text, n=0)
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "n.real",
        "n[0]",
        "[n for n in [1]]",
        "lambda: 1",
        "f'{n}'",
        "(n := 3)",
        "print(n)",
        "abs(n, key=3)",
        "abs(*n)",
        "max(n)",
        "round(x, n)",
        "n is 3",
        "~n",
        "n & 1",
        "n ^ 2",
        "n << 2",
        "n @ n",
        "{1: 2}",
        "{1, 2}",
        "n in m",
        "1 < n in [2]",
        "solver + 1",
        "solver < 'x'",
        "solver == n",
        "sqrt(solver)",
        "1 if n > 0 else 'x'",
        "n and m",
        "not n",
        "kappa",
        "sqrt",
        "None",
        "...",
        "b'x'",
        "1j",
        "1e999",
        str(2**63),
        "n; m",
        "n\\",
        "\0",
        "",
        "   ",
        "(" * 400 + "n" + ")" * 400,
        "-" * 200 + "n",
        "n" + "+n" * 200,
        "n" + " + n" * 1000,
        "yield n",
        "n = 3",
    ],
)
def test_what_is_not_in_the_language_is_refused(text: str) -> None:
    with pytest.raises(SweepFileError) as caught:
        compile_expression(text, KINDS, "sweep.where")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("sweep.where: ")
