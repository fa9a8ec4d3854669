"""Templates: what ``{name}`` becomes, and what is refused before anything runs."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_mpi.tools.templates import TemplateError, compile_template, format_value, with_braces

VALUES = {"n": 16, "kappa": 0.5, "name": "a b", "flag": True, "big": 2**60, "tiny": 1e-300, "third": 1 / 3}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{n}", "16"),
        ("--n={n}", "--n=16"),
        ("{n}{n}", "1616"),
        ("{kappa:.3f}", "0.500"),
        ("{n:05d}|{name:>5}", "00016|  a b"),
        ("{flag}", "true"),
        ("{flag:d}", "1"),
        ("{big}", str(2**60)),
        ("{tiny}", "1e-300"),
        ("{third}", "0.3333333333333333"),
        ("{{n}}", "{n}"),
        ("{{{n}}}", "{16}"),
        ("{{}} }}{{", "{} }{"),
        ("a\n{n}\nb", "a\n16\nb"),
        ("{kappa:}", "0.5"),
    ],
)
def test_rendering(text: str, result: str) -> None:
    template = compile_template(text)
    assert template.render(VALUES) == result
    template.check_values(VALUES)


def test_names_are_known_before_anything_runs() -> None:
    template = compile_template("x\n{n} {kappa:.2f}\n{{no}} {n}")
    assert template.names == {"n", "kappa"}
    assert [(field.name, field.spec, field.line) for field in template.fields] == [
        ("n", "", 2),
        ("kappa", ".2f", 2),
        ("n", "", 3),
    ]
    assert not template.literal
    assert compile_template("{{x}}").literal


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a {", 1, "a { without its }"),
        ("a\n}", 2, "a } without its {"),
        ("{}", 1, "{} is not a parameter's name"),
        ("{0}", 1, "{0} is not a parameter's name"),
        ("{a.b}", 1, "{a.b} is not a parameter's name"),
        ("{a[0]}", 1, "{a[0]} is not a parameter's name"),
        ("{a!r}", 1, "{a!r} is not a parameter's name"),
        ("{ n }", 1, "{ n } is not a parameter's name"),
        ("{n:{w}}", 1, "a { without its }"),
        ('x\n\n{"json": 1}', 3, '{"json": 1} is not a parameter\'s name'),
        ("solver\n{\n  tol 1e-6;\n}", 2, "{ tol 1e-6; } is not a parameter's name"),
        ("{" + "x y" * 40 + "}", 1, "..."),
    ],
)
def test_what_is_no_template(text: str, line: int, problem: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template(text)
    assert problem in caught.value.problem
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{kappa:d}", "{name:.3f}", "{n:s}", "{flag:%Y}", "{n:c}{big:c}"])
def test_a_spec_that_does_not_fit_its_value(text: str) -> None:
    with pytest.raises(TemplateError, match="does not fit the value"):
        compile_template("x\n" + text).check_values(VALUES)


@given(value=st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_read_back_as_they_were(value: float) -> None:
    assert type(value)(format_value(value)) == value


@given(text=st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_quoted_values_are_one_word(text: str) -> None:
    rendered = compile_template("echo {name} {{}}").render_quoted({"name": text})
    assert shlex.split(rendered) == ["echo", text, "{}"]


@given(text=st.text("ab{}<>\n", max_size=20))
def test_other_delimiters_leave_braces_alone(text: str) -> None:
    if "<<" not in text:
        assert compile_template(with_braces(text, "<<", ">>")).render({}) == text


def test_other_delimiters() -> None:
    text = with_braces("solver\n{ n <<n>>; k << kappa:.2f >>; }", "<<", ">>")
    assert compile_template(text).render(VALUES) == "solver\n{ n 16; k 0.50; }"
    with pytest.raises(TemplateError, match="a << without its >>") as caught:
        with_braces("x\n<<n", "<<", ">>")
    assert caught.value.line == 2
