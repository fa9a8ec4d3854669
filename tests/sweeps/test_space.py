"""The space: numbered both ways, the same one by one and by the column, never expanded."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps import space as space_module
from keystone_mpi.sweeps.axes import make_axis
from keystone_mpi.sweeps.blocks import RowIndex, SampleBlock, exp2
from keystone_mpi.sweeps.space import Space
from keystone_mpi.sweeps.spec import AxisSpec, RangeSpec, RowsSpec, SampleSpec, SpaceSpec
from keystone_mpi.sweeps.values import canonical_bytes

decimals = st.decimals(-100, 100, places=3).map(float)
value_lists = st.one_of(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=6, unique=True),
    st.lists(decimals, min_size=1, max_size=6, unique=True),
    st.lists(st.text("abc{} 'é", max_size=4), min_size=1, max_size=5, unique=True),
    st.lists(st.booleans(), min_size=1, max_size=2, unique=True),
)


@st.composite
def axes(draw: st.DrawFn, name: str) -> AxisSpec:
    form = draw(st.sampled_from(["values", "values", "linspace", "range", "logspace"]))
    match form:
        case "values":
            return AxisSpec(name, draw(value_lists))
        case "linspace":
            first = draw(decimals)
            return AxisSpec(name, linspace=(first, first + draw(st.integers(1, 9)), draw(st.integers(1, 7))))
        case "range":
            start, step = draw(st.integers(-50, 50)), draw(st.sampled_from([1, 3, -2, 0.1, 0.25, -0.7]))
            return AxisSpec(name, range=(start, start + step * draw(st.integers(1, 6)), step))
        case _:
            return AxisSpec(
                name, logspace=(draw(st.sampled_from([1e-6, 1e-3, 2.0])), 100.0, draw(st.integers(1, 6)))
            )


@st.composite
def rows(draw: st.DrawFn, names: list[str], source: Any) -> RowsSpec:
    count = draw(st.integers(1, 5))
    columns: list[list[Any]] = [list(range(count))]
    columns += [
        draw(st.lists(st.sampled_from([0.5, 1.0, 7.25]), min_size=count, max_size=count)) for _ in names[2:]
    ]
    columns += [draw(st.lists(st.sampled_from(["a", "b"]), min_size=count, max_size=count))]
    return RowsSpec(source, names, ["int", *["float"] * (len(names) - 2), "str"], columns)


@st.composite
def samples(draw: st.DrawFn) -> SampleSpec:
    ranges = [
        RangeSpec("u", 0.0, draw(st.sampled_from([1.0, 3.5]))),
        RangeSpec("v", 0.001, 10.0, "log"),
        RangeSpec("w", 1.0, 6.0, draw(st.sampled_from(["linear", "log"])), "int"),
    ]
    return SampleSpec(
        draw(st.sampled_from(["random", "lhs"])), draw(st.integers(1, 9)), ranges, draw(st.integers(0, 9))
    )


@st.composite
def spaces(draw: st.DrawFn) -> SpaceSpec:
    count = draw(st.integers(1, 3))
    params = [draw(axes(name)) for name in ["a", "b", "c"][:count]]
    blocks = []
    if draw(st.booleans()):
        blocks.append(draw(rows(["z1", "z2"], "zip")))
    if draw(st.booleans()):
        blocks.append(draw(rows(["t1", "t2", "t3"], "table")))
    return SpaceSpec(params, blocks, draw(st.none() | samples()), {}, "", draw(st.sampled_from([1, 1, 2, 5])))


def with_filter(spec: SpaceSpec, derived: bool, where: bool) -> SpaceSpec:
    """Add expressions that fit whatever numbers the space has."""
    kinds = Space(spec).kinds()
    numbers = [name for name, kind in kinds.items() if kind in ("int", "float") and name != "replicate"]
    assume(numbers)
    formulas = (
        {"d": f"sqrt(abs({numbers[0]})) / 3 + {numbers[-1]}", "d2": "floor(10 * d) % 3"} if derived else {}
    )
    condition = ("d2 != 1" if derived else f"{numbers[0]} * 7 % 3 < 1.7") if where else ""
    return msgspec.structs.replace(spec, derived=formulas, where=condition)


def brute_force(spec: SpaceSpec) -> list[dict[str, Any]]:
    """The points as nested loops would list them."""
    factors: list[list[dict[str, Any]]] = []
    for axis in spec.params:
        made = make_axis(axis)
        factors.append([{axis.name: made.value(index)} for index in range(made.size)])
    for block in spec.rows:
        factors.append([dict(zip(block.names, row, strict=True)) for row in zip(*block.columns, strict=True)])
    if spec.sample is not None:
        sample = SampleBlock(spec.sample)
        drawn = []
        for row in range(sample.size):
            point: dict[str, Any] = {}
            sample.fill(point, row)
            drawn.append(point)
        factors.append(drawn)
    points = []
    for combination in itertools.product(*factors):
        point = {name: value for part in combination for name, value in part.items()}
        names = {**point, "sqrt": math.sqrt, "abs": abs, "floor": math.floor}
        for name, text in spec.derived.items():
            point[name] = names[name] = eval(text, {"__builtins__": {}}, names)
        if spec.where and not eval(spec.where, {"__builtins__": {}}, names):
            continue
        for replicate in range(spec.repeat):
            points.append({**point, "replicate": replicate} if spec.repeat > 1 else point)
    return points


@settings(max_examples=120, deadline=None)
@given(data=st.data(), chunk=st.sampled_from([3, 16, 16384]), derived=st.booleans(), where=st.booleans())
def test_points_are_those_of_nested_loops_and_every_way_of_asking_agrees(
    data: st.DataObject, chunk: int, derived: bool, where: bool
) -> None:
    spec = data.draw(spaces())
    if derived or where:
        spec = with_filter(spec, derived, where)
    expected = brute_force(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space_module, "CHUNK", chunk)
        patch.setattr(space_module, "BYTES_HELD", 500)
        asked_first = Space(spec)
        order = data.draw(st.permutations(range(len(expected))))
        for k in order[:20]:  # before anything was counted, in any order
            assert asked_first.params(k) == expected[k]
        space = Space(spec)
        assert len(space) == len(expected)
        assert space.is_empty() == (not expected)
        points = [space.params(k) for k in range(len(expected))]
        assert points == expected
        assert all(list(point) == list(space.names) for point in points)
        columns = space.columns(0, len(expected))
        for name in space.names:
            assert columns[name].tolist() == [point[name] for point in points]
            assert [type(value) for value in columns[name].tolist()] == [
                type(point[name]) for point in points
            ]
        part = slice(len(expected) // 3, len(expected) // 2)
        some = space.columns(part.start, part.stop)
        assert {name: column.tolist() for name, column in some.items()} == {
            name: column[part].tolist() for name, column in columns.items()
        }
        assert [space.index_of(point) for point in points] == list(range(len(points)))
        if points:
            assert space.indices_of(columns).tolist() == list(range(len(points)))
        assert (
            sum(len(next(iter(chunk.values()))) for chunk in space.scan(frozenset(space.names[:1])))
            == len(expected) // spec.repeat
        )
        with pytest.raises(IndexError):
            space.params(len(expected))
        with pytest.raises(IndexError):
            space.columns(0, len(expected) + 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_not_in_the_space_has_no_number(data: st.DataObject) -> None:
    spec = data.draw(spaces())
    space = Space(spec)
    point = space.params(data.draw(st.integers(0, len(space) - 1)))
    name = data.draw(st.sampled_from([name for name in space.names if name != "replicate"]))
    assert space.index_of({key: value for key, value in point.items() if key != name}) is None
    assert space.index_of({**point, "other": 1}) is None
    for stranger in (12345.678, math.nan, math.inf, "stranger", None, 10**30):
        assert space.index_of({**point, name: stranger}) is None
    if not isinstance(point[name], bool):
        assert space.index_of({**point, name: True}) is None
    assert space.index_of({**point, "replicate": spec.repeat}) is None


def test_the_first_parameter_varies_slowest_and_the_replicate_fastest() -> None:
    space = Space(
        SpaceSpec(
            [AxisSpec("a", [1, 2]), AxisSpec("b", ["x", "y"])],
            [RowsSpec("zip", ["z"], ["int"], [[7, 8]])],
            repeat=2,
        )
    )
    assert [tuple(space.params(k).values()) for k in range(6)] == [
        (1, "x", 7, 0),
        (1, "x", 7, 1),
        (1, "x", 8, 0),
        (1, "x", 8, 1),
        (1, "y", 7, 0),
        (1, "y", 7, 1),
    ]


def test_no_parameter_is_one_point() -> None:
    space = Space(SpaceSpec(repeat=3))
    assert [space.params(k) for k in range(len(space))] == [
        {"replicate": 0},
        {"replicate": 1},
        {"replicate": 2},
    ]
    assert space.index_of({"replicate": 2}) == 2
    assert Space(SpaceSpec()).params(0) == {}
    assert space.indices_of({"replicate": np.array([2, 0, 9])}).tolist() == [2, 0, -1]


def test_numbers_are_the_same_value_in_either_form() -> None:
    space = Space(SpaceSpec([AxisSpec("n", [1, 2]), AxisSpec("x", [0.0, 1.0])]))
    assert space.index_of({"n": 2.0, "x": 1}) == 3
    assert space.index_of({"n": 2, "x": -0.0}) == 2
    assert space.index_of({"n": True, "x": 1.0}) is None
    columns = {"n": np.array([1.0, 2.0, 3.0]), "x": np.array([1, 0, 0])}
    assert space.indices_of(columns).tolist() == [1, 2, -1]


def test_raising_repeat_and_dropping_it_keeps_the_first_replicate() -> None:
    one, many = Space(SpaceSpec([AxisSpec("n", [1, 2])])), Space(SpaceSpec([AxisSpec("n", [1, 2])], repeat=3))
    assert many.index_of(one.params(1)) == 3
    assert [one.index_of(many.params(k)) for k in range(6)] == [0, None, None, 1, None, None]
    assert one.indices_of(many.columns(0, 6)).tolist() == [0, -1, -1, 1, -1, -1]
    assert canonical_bytes({"n": 1}) == canonical_bytes({"n": 1.0, "replicate": 0})
    assert canonical_bytes({"n": 1}) != canonical_bytes({"n": 1, "replicate": 1})


def test_derived_values_are_no_part_of_the_identity() -> None:
    old = Space(SpaceSpec([AxisSpec("n", [1, 2])], derived={"h": "1 / n"}))
    new = Space(SpaceSpec([AxisSpec("n", [0, 1, 2])], derived={"g": "n + 1"}))
    columns = old.columns(0, 2)
    assert new.indices_of(columns).tolist() == [-1, -1]
    assert new.indices_of(columns, ignore=frozenset(old.derived_names)).tolist() == [1, 2]
    assert old.index_of({"n": 2}) == 1


def test_where_spares_derived_values_from_points_that_are_not_there() -> None:
    space = Space(SpaceSpec([AxisSpec("n", [0, 1, 2])], derived={"h": "1 / n"}, where="n > 0"))
    assert [space.params(k)["h"] for k in range(len(space))] == [1.0, 0.5]
    assert next(iter(space.scan(frozenset(("h",)))))["h"].tolist() == [1.0, 0.5]


def test_an_expression_without_a_result_names_the_point() -> None:
    space = Space(SpaceSpec([AxisSpec("n", [2, 1, 0]), AxisSpec("x", [0.5])], where="x / n < 3"))
    with pytest.raises(SweepFileError) as caught:
        len(space)
    assert str(caught.value) == (
        'sweep.where: "x / n < 3": division by zero, at n = 0, x = 0.5 '
        "(a condition guards it: x != 0 and 1 / x < 5)"
    )


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (AxisSpec("x", range=(0, 1, 0.1)), [i / 10 for i in range(10)]),
        (AxisSpec("x", range=(0, 10, 3)), [0, 3, 6, 9]),
        (AxisSpec("x", range=(5, 0, -2)), [5, 3, 1]),
        (AxisSpec("x", range=(0.3, 0.0, -0.1)), [0.3, 0.2, 0.1]),
        (AxisSpec("x", linspace=(0.5, 2.0, 4)), [0.5, 1.0, 1.5, 2.0]),
        (AxisSpec("x", linspace=(0, 0.3, 4)), [0.0, 0.1, 0.2, 0.3]),
        (AxisSpec("x", linspace=(1, 0, 3)), [1.0, 0.5, 0.0]),
        (AxisSpec("x", linspace=(7, 9, 1)), [7.0]),
        (AxisSpec("x", logspace=(1e-3, 1.0, 4)), [0.001, 0.01, 0.1, 1.0]),
        (AxisSpec("x", logspace=(100.0, 1.0, 3)), [100.0, 10.0, 1.0]),
        (AxisSpec("x", [-0.0, 1]), [0.0, 1.0]),
    ],
)
def test_ranges_hold_what_was_written(spec: AxisSpec, values: list[float]) -> None:
    axis = make_axis(spec)
    found = [axis.value(index) for index in range(axis.size)]
    assert [repr(value) for value in found] == [repr(value) for value in values]
    assert axis.take(np.arange(axis.size)).tolist() == found


@settings(max_examples=80, deadline=None)
@given(
    first=st.floats(-1e6, 1e6),
    span=st.floats(1e-3, 1e6),
    count=st.integers(2, 300),
    form=st.sampled_from(["linspace", "range"]),
)
def test_ranges_with_many_digits_are_one_function_of_i(
    first: float, span: float, count: int, form: str
) -> None:
    assume(first + span / count > first)
    spec = (
        AxisSpec("x", linspace=(first, first + span, count))
        if form == "linspace"
        else AxisSpec("x", range=(first, first + span, span / count))
    )
    axis = make_axis(spec)
    values = [axis.value(index) for index in range(axis.size)]
    assert axis.take(np.arange(axis.size)).tolist() == values
    if len(set(values)) == len(values):
        assert [axis.find(value) for value in values] == list(range(axis.size))
    if form == "linspace":
        assert (values[0], values[-1]) == (first, first + span)
    else:
        assert all(value < first + span or value == pytest.approx(first + span) for value in values)


@given(exponents=st.lists(st.floats(-300, 300), min_size=1, max_size=20))
def test_the_reproducible_exponential_is_right(exponents: list[float]) -> None:
    found = exp2(np.array(exponents))
    for exponent, value in zip(exponents, found.tolist(), strict=True):
        assert value == pytest.approx(2.0**exponent, rel=1e-15)


def test_the_reproducible_exponential_has_fixed_bits() -> None:
    assert exp2(np.array([0.0, 1.0, -3.0, 0.5, -9.97])).tolist() == [
        1.0,
        2.0,
        0.125,
        1.414213562373095,
        0.0009970821540109306,
    ]


def drawn(method: Any, n: int, names: str = "xk", seed: int = 3) -> dict[str, np.ndarray]:
    ranges = [RangeSpec(name, 0.001, 1.0, "log" if name == "k" else "linear") for name in names]
    return SampleBlock(SampleSpec(method, n, ranges, seed)).take(np.arange(n), frozenset(names))


def test_random_draws_are_in_range_and_keep_when_the_sample_grows() -> None:
    small, large, wide = drawn("random", 5000), drawn("random", 9000), drawn("random", 5000, "axk")
    for name in "xk":
        assert small[name].tobytes() == large[name][:5000].tobytes() == wide[name].tobytes()
        assert small[name].min() >= 0.001
        assert small[name].max() <= 1.0
    assert 0.47 < small["x"].mean() < 0.53
    assert -1.6 < np.log10(small["k"]).mean() < -1.4
    assert drawn("random", 10, seed=4)["x"].tolist() != drawn("random", 10)["x"].tolist()


def test_latin_hypercube_has_one_point_per_stratum() -> None:
    columns = drawn("lhs", 4200)
    assert sorted(np.floor((columns["x"] - 0.001) / 0.999 * 4200).astype(int)) == list(range(4200))
    strata = np.floor((np.log10(columns["k"]) + 3) / 3 * 4200 + 1e-9).astype(int)
    assert len(set(strata.tolist())) > 4190
    assert columns["x"].argsort().tolist() != columns["k"].argsort().tolist()


def test_whole_number_ranges_hold_both_ends() -> None:
    for scale in ("linear", "log"):
        block = SampleBlock(SampleSpec("random", 3000, [RangeSpec("n", 2, 5, scale, "int")], 1))
        assert set(block.take(np.arange(3000), frozenset("n"))["n"].tolist()) == {2, 3, 4, 5}


def test_rows_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowIndex, "_hash", lambda self, columns: np.zeros(len(columns["a"]), np.uint64))
    column = np.array([5, 3, 9, 1])
    index = RowIndex(["a"], 4, lambda rows: {"a": column[rows]})
    assert index.find_many({"a": np.array([1, 4, 9, 5])}).tolist() == [3, -1, 2, 0]


def test_too_many_combinations_are_refused() -> None:
    axes_ = [AxisSpec(name, range=(0, 10**5, 1)) for name in "abc"]
    with pytest.raises(SweepFileError, match="params: 1,000,000,000,000,000 combinations; at most"):
        Space(SpaceSpec(axes_))
    with pytest.raises(SweepFileError, match=r"sweep.where: 10,000,000,000 combinations to look at"):
        Space(SpaceSpec(axes_[:2], where="a < b"))
    with pytest.raises(SweepFileError, match=r"sweep.derived: 10,000,000,000 combinations to look at"):
        list(Space(SpaceSpec(axes_[:2], derived={"d": "a / b"})).scan(frozenset("d")))


def test_values_are_plain_whatever_the_number_is() -> None:
    spec = SpaceSpec([AxisSpec("a", range=(0, 9, 1)), AxisSpec("b", linspace=(0, 1, 3))], repeat=2)
    point = Space(spec).params(np.int64(13))  # type: ignore[arg-type]
    assert [type(value) for value in point.values()] == [int, float, int]
