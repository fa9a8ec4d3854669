"""Results out of outputs and files, without numpy in the reader (numpy writes the files here)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from keystone_mpi.core.model import ArrayValue, Why
from keystone_mpi.tools.arrays import ResultFormatError, array_from_numbers, read_npy
from keystone_mpi.tools.collect import Collected, CollectPlan, last_json_object
from keystone_mpi.tools.recipe import CollectRule, Recipe, SuccessRule
from keystone_mpi.tools.result_files import convert

PLAIN = Recipe()
DTYPES = ["<f8", ">f8", "<f4", ">f4", "<i8", ">i4", "<u2", "|i1", "|u1", ">u8", "<f2"]


def collect(
    recipe: Recipe = PLAIN,
    stdout: bytes = b"",
    stderr: bytes = b"",
    result_path: Path | None = None,
    files: dict[str, str] | None = None,
    chunk: int = 1 << 16,
) -> Collected:
    collection = CollectPlan(recipe).start(files or {})
    for at in range(0, len(stdout), chunk):
        collection.feed_stdout(stdout[at : at + chunk])
    for at in range(0, len(stderr), chunk):
        collection.feed_stderr(stderr[at : at + chunk])
    return collection.finish(stdout, str(result_path) if result_path else "")


def to_numpy(value: object) -> np.ndarray:
    assert isinstance(value, ArrayValue), value
    return np.frombuffer(value.data, value.dtype).reshape(value.shape)


class TestJsonOnStdout:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"a": 1}', {"a": 1}),
            ('{"a": 1}\n{"a": 2}\n', {"a": 2}),
            ('{"a": 1}\nDone {in} 3 s\n}\n', {"a": 1}),
            ('chatter {\n{"a": 1, "b": {"c": 2.5}}\nmore\n', {"a": 1, "b.c": 2.5}),
            ('{\n  "a": 1,\n  "b": {\n    "c": 2\n  }\n}\n', {"a": 1, "b.c": 2}),
            ('KEYSTONE_RESULT {"etotal": -2.5}\n', {"etotal": -2.5}),
            ('KEYSTONE_RESULT: {"etotal": -2.5}\n', {"etotal": -2.5}),
            ('{"a": null, "b": true, "c": "text", "d": 10000000000000000000000}', None),
            ("no object", {}),
            ("[1, 2]\n", {}),
            ("{'python': 'dict'}\n", {}),
            ("}}}}{{{{\n}\n}\n", {}),
            ('{"a/b": 1, "": 2}', {"a.b": 1, "value": 2}),
        ],
    )
    def test_last_object(self, text: str, expected: dict[str, object] | None) -> None:
        if expected is None:
            expected = {"b": True, "c": "text", "d": 1e22}
        found = collect(stdout=text.encode())
        assert found.scalars == expected
        assert found.ok

    def test_numbers_that_json_lacks(self) -> None:
        found = collect(stdout=b'{"a": NaN, "b": Infinity, "c": -Infinity}').scalars
        assert math.isnan(found["a"])
        assert (found["b"], found["c"]) == (math.inf, -math.inf)

    def test_text_that_files_cannot_hold(self) -> None:
        found = collect(stdout=rb'{"a": "x\u0000y", "b": "\ud800"}').scalars
        assert found == {"a": "x\u2400y", "b": "?"}

    def test_lists(self) -> None:
        found = collect(
            stdout=b'{"a": [1, 2], "b": [[1, 2.5], [3, null]], "c": ["x", 1], "d": [[1], [2, 3]]}'
        )
        assert to_numpy(found.arrays["a"]).tolist() == [1, 2]
        assert to_numpy(found.arrays["b"])[0].tolist() == [1, 2.5]
        assert found.scalars == {"c": '["x",1]', "d": "[[1],[2,3]]"}

    @given(st.binary(max_size=300))
    def test_any_output_is_survived(self, data: bytes) -> None:
        last_json_object(data)
        assert isinstance(collect(stdout=data), Collected)

    @given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers(-(2**60), 2**60)))
    def test_round_trip(self, values: dict[str, int]) -> None:
        text = f"begin\n{json.dumps(values)}\nend {{}} of {{run\n"
        assert collect(stdout=text.encode()).scalars == values


class TestRegex:
    def test_last_match_wins_whatever_the_chunks(self) -> None:
        rules = (
            CollectRule(name="residual", regex=r"^residual = (\S+)$", type="float"),
            CollectRule(name="steps", regex=r"steps: (\d+)"),
            CollectRule(name="warnings", regex=r"warning: (.*)", source="stderr", type="str"),
            CollectRule(name="pair", regex=r"first\n  second (\d)", type="int"),
        )
        recipe = Recipe(collect=rules, success=SuccessRule(regex="converged"))
        out = b"residual = 1e-3\nsteps: 5\nfirst\n  second 4\nresidual = 2.5D-4\nconverged\nresidual = 1E-5"
        err = b"warning: a\nwarning: the last\n"
        expected = {"residual": 1e-5, "steps": 5, "warnings": "the last", "pair": 4}
        for chunk in (1, 2, 3, 7, 1000):
            found = collect(recipe, out, err, chunk=chunk)
            assert found.scalars == expected
            assert found.ok

    def test_long_lines_take_bounded_memory(self) -> None:
        plan = CollectPlan(Recipe(collect=(CollectRule(name="x", regex=r"x=(\d+)"),)))
        collection = plan.start({})
        for _ in range(50):
            collection.feed_stdout(b"." * 50_000)
        collection.feed_stdout(b"x=12")
        assert collection.finish(b"", "").scalars == {"x": 12}

    def test_wrong_type(self) -> None:
        recipe = Recipe(collect=(CollectRule(name="n", regex=r"n = (\S+)", type="int"),))
        found = collect(recipe, b"n = many")
        assert (found.ok, found.why) == (False, Why.RESULTS)
        assert found.error == "collect.n: 'many' is not of type int"


class TestSuccess:
    OUT = b'{"a": 1.5, "b": NaN, "c": "text", "d": [1, 2], "e": [1, NaN]}\n'

    @pytest.mark.parametrize(
        ("rule", "error"),
        [
            (SuccessRule(), ""),
            (SuccessRule(finite=("a", "d"), required=("a", "c"), regex=r"\{"), ""),
            (SuccessRule(required=("z",)), "required result 'z' was not found"),
            (SuccessRule(finite=("z",)), "required result 'z' was not found"),
            (SuccessRule(finite=("b",)), "success.finite: result 'b' is not finite (it is nan)"),
            (SuccessRule(finite=("e",)), "success.finite: result 'e' is not finite"),
            (SuccessRule(finite=("c",)), "success.finite: result 'c' is not finite (it is 'text')"),
            (SuccessRule(regex="converged"), "success.regex: 'converged' was not found in stdout"),
        ],
    )
    def test_conditions(self, rule: SuccessRule, error: str) -> None:
        found = collect(Recipe(success=rule), self.OUT)
        assert found.error == error
        assert found.ok is (error == "")
        assert found.why is (Why.NONE if found.ok else Why.CONDITION)
        assert found.scalars["a"] == 1.5

    def test_required_regex(self) -> None:
        recipe = Recipe(collect=(CollectRule(name="r", regex=r"r=(\d)", required=True),))
        assert collect(recipe, b"r=1").ok
        assert collect(recipe, b"nothing").why is Why.CONDITION


class TestFiles:
    def read(self, path: Path, **options: object) -> Collected:
        """Collect a file as one that the attempt has just written."""
        rule = CollectRule(name="v", file=path.name, **options)
        content = path.read_bytes()
        path.unlink()
        collection = CollectPlan(Recipe(collect=(rule,))).start({"v": str(path)})
        path.write_bytes(content)
        return collection.finish(b"", "")

    def test_npy(self, tmp_path: Path) -> None:
        path = tmp_path / "u.npy"
        np.save(path, np.arange(6.0).reshape(2, 3))
        found = self.read(path)
        assert (to_numpy(found.arrays["v"]) == np.arange(6.0).reshape(2, 3)).all()

    def test_npz(self, tmp_path: Path) -> None:
        path = tmp_path / "u.npz"
        np.savez_compressed(path, a=np.arange(3), b=2.5, c=np.array("text"), d=True)
        found = self.read(path)
        assert found.scalars == {"v.b": 2.5, "v.c": "text", "v.d": True}
        assert to_numpy(found.arrays["v.a"]).tolist() == [0, 1, 2]
        assert to_numpy(self.read(path, column="a").arrays["v"]).tolist() == [0, 1, 2]
        found = self.read(path, column="z")
        assert "has no 'z' (it has: a, b, c, d)" in found.error

    def test_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_text("time; energy ;n\n0;1.5;1\n1;;2\n2;2.5D0;3\n")
        energy = to_numpy(self.read(path, column="energy").arrays["v"])
        assert energy[[0, 2]].tolist() == [1.5, 2.5]
        assert math.isnan(energy[1])
        assert self.read(path, column="n").arrays["v"].dtype == "<i8"
        assert self.read(path, column="energy", type="float").scalars == {"v": 2.5}
        assert "no column 'x' (it has: time, energy, n)" in self.read(path, column="x").error
        path.write_text("a,b\n1,2\n3\n")
        assert "row 3 has 1 of 2 columns" in self.read(path, column="b").error
        path.write_text("a,b\n1,2\n3,oops\n")
        assert "row 3: 'oops' is not a number" in self.read(path, column="b").error
        path.write_text("")
        assert "is empty" in self.read(path, column="b").error

    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        path.write_text('{"a": {"b": [1, 2], "c": 5}}')
        found = self.read(path)
        assert found.scalars == {"v.a.c": 5}
        assert self.read(path, column="a.c").scalars == {"v": 5}
        path.write_text('{"a": ')
        found = self.read(path)
        assert (found.why, "malformed JSON" in found.error) == (Why.RESULTS, True)

    def test_text(self, tmp_path: Path) -> None:
        path = tmp_path / "out.dat"
        path.write_text("42\n")
        assert self.read(path).scalars == {"v": 42}
        path.write_text("# x y\n1 2\n3 4.5  # last\n")
        assert to_numpy(self.read(path).arrays["v"]).tolist() == [[1, 2], [3, 4.5]]
        path.write_text("1\n2\n3\n")
        assert to_numpy(self.read(path).arrays["v"]).shape == (3,)
        path.write_text("all is well\n")
        assert self.read(path).scalars == {"v": "all is well"}
        assert self.read(path, type="str").scalars == {"v": "all is well"}
        assert not self.read(path, type="float").ok

    def test_only_files_of_this_attempt(self, tmp_path: Path) -> None:
        path = tmp_path / "u.dat"
        rule = CollectRule(name="v", file="u.dat")
        required = CollectRule(name="v", file="u.dat", required=True)
        files = {"v": str(path)}
        assert collect(Recipe(collect=(rule,)), files=files).ok
        missing = collect(Recipe(collect=(required,)), files=files)
        assert (missing.why, missing.error) == (
            Why.RESULTS,
            f"collect.v: required file {path} was not written",
        )
        path.write_text("1")
        assert collect(Recipe(collect=(rule,)), files=files).scalars == {}
        assert "is older than this attempt" in collect(Recipe(collect=(required,)), files=files).error

    def test_result_file(self, tmp_path: Path) -> None:
        path = tmp_path / "result"
        np.savez(path, x=np.float32(1.5), y=np.eye(2))
        found = collect(result_path=tmp_path / "result.npz", stdout=b'{"x": 1, "z": 3}')
        assert found.scalars == {"x": 1.5, "z": 3}
        assert to_numpy(found.arrays["y"]).tolist() == [[1, 0], [0, 1]]
        path.write_bytes(b"PK\x03\x04 torn")
        assert "not a sound .npz" in collect(result_path=path).error
        path.write_text("[1]")
        assert "a JSON object is needed" in collect(result_path=path).error
        path.write_text("")
        assert collect(result_path=path).ok


class TestNpy:
    def bytes_of(self, tmp_path: Path, array: object) -> bytes:
        path = tmp_path / "a.npy"
        np.save(path, array)
        return path.read_bytes()

    @given(
        array=st_numpy.arrays(
            dtype=st.sampled_from(
                ["<f8", ">f8", "<f4", ">f4", "<i8", ">i4", "<u2", "|i1", "|u1", ">u8", "<f2"]
            ),
            shape=st_numpy.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
        ),
        fortran=st.booleans(),
    )
    def test_any_numeric_array(
        self, tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, fortran: bool
    ) -> None:
        if fortran:
            array = np.asfortranarray(array)
        value = read_npy(self.bytes_of(tmp_path_factory.mktemp("npy"), array), "here")
        assert isinstance(value, ArrayValue)
        assert value.dtype[0] in "<|"
        assert value.dtype != "<f2"
        assert value.shape == array.shape
        np.testing.assert_array_equal(np.frombuffer(value.data, value.dtype).reshape(value.shape), array)

    def test_other_kinds(self, tmp_path: Path) -> None:
        value = read_npy(self.bytes_of(tmp_path, np.array([[True, False]])), "here")
        assert isinstance(value, ArrayValue)
        assert (value.dtype, value.shape, value.data) == ("|i1", (1, 2), b"\1\0")
        parts = read_npy(self.bytes_of(tmp_path, np.array([1 + 2j, 3 - 4j], dtype=">c16")), "here")
        assert isinstance(parts, dict)
        assert to_numpy(parts["real"]).tolist() == [1, 3]
        assert to_numpy(parts["imag"]).tolist() == [2, -4]
        for scalar in (np.float64(2.5), np.int32(-3), np.bool_(True), np.array("täxt"), np.array(b"bytes")):
            expected = "bytes" if scalar.dtype.kind == "S" else scalar.item()
            assert read_npy(self.bytes_of(tmp_path, scalar), "here") == expected

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (np.array([{"a": 1}], dtype=object), "object arrays are not read"),
            (np.zeros(2, dtype=[("a", "f8")]), "arrays of records"),
            (np.array(["a", "b"]), "arrays of strings"),
            (np.zeros(2, dtype="M8[s]"), "arrays of type '<M8[s]'"),
        ],
    )
    def test_refused(self, tmp_path: Path, array: np.ndarray, expected: str) -> None:
        path = tmp_path / "a.npy"
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ResultFormatError, match="here: ") as caught:
            read_npy(path.read_bytes(), "here")
        assert expected in str(caught.value)

    def test_torn_at_every_byte(self, tmp_path: Path) -> None:
        data = self.bytes_of(tmp_path, np.arange(4.0))
        for length in range(len(data)):
            with pytest.raises(ResultFormatError):
                read_npy(data[:length], "here")


def test_array_from_numbers() -> None:
    assert array_from_numbers([]) == ArrayValue("<f8", (0,), b"")
    assert array_from_numbers([True, False]) == ArrayValue("|i1", (2,), b"\1\0")
    assert array_from_numbers([1, 2**70]).dtype == "<f8"  # type: ignore[union-attr]
    assert array_from_numbers([[1], [2, 3]]) is None
    assert array_from_numbers([1, [2]]) is None
    assert array_from_numbers([[], []]).shape == (2, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (" 12 ", "", 12),
        ("1.5e3", "", 1500.0),
        ("1.0D-3", "", 0.001),
        ("word", "", "word"),
        ("12", "float", 12.0),
        (".true.", "bool", True),
        ("off", "bool", False),
        ("12", "str", "12"),
        ("-inf", "float", -math.inf),
    ],
)
def test_convert(text: str, kind: str, expected: object) -> None:
    value = convert(text, kind, "here")
    assert value == expected
    assert type(value) is type(expected)
