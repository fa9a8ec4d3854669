"""Expressions: the plain arithmetic of ``where`` and ``derived``.

Rule: user text is parsed into a tree, every node of the tree is on a list,
and the tree is evaluated by numpy over whole columns.  Nothing is ever
compiled or executed as Python.  Kinds are known before anything is evaluated,
so "text times number" is an error of the sweep file.

    text --(compile_expression, kinds)--> Expression --(evaluate(columns))--> column

Language: numbers, text in quotes, true, false, parameter names; + - * / // %
and **; comparisons (chained too), ``in [..]``, and, or, not; ``a if c else b``;
abs min max sqrt exp log log10 sin cos tan floor ceil round; pi and e.
``and``, ``or`` and ``if`` evaluate only what they must, per point, as Python
does: ``n > 0 and 1 / n < 0.1`` is safe for n = 0.  Whole-number arithmetic is
exact or an error, never wrapped.  ``**`` of whole numbers is whole for a
literal exponent 0..63, a float otherwise.  A point at which the arithmetic
has no result (1/0, log(-1), overflow) is an error that names the point.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.arithmetic import (
    COMPARISONS,
    CONSTANTS,
    FOREIGN_SYMBOLS,
    FUNCTIONS,
    KIND_WORDS,
    NOT_IN_LANGUAGE,
    ROUNDERS,
    SYMBOLS,
    in_words,
    text_differs,
    text_equal,
    to_whole,
    whole_power,
    whole_product,
    whole_sum,
)
from keystone_mpi.sweeps.values import DTYPES, LARGEST_INT, Array, Kind, describe, near_match

LONGEST_TEXT = 2000
DEEPEST_TREE = 100

Columns = Mapping[str, Array]
Run = Callable[[Columns], Any]


class PointError(ArithmeticError):
    """The arithmetic has no result at one point of the columns."""

    def __init__(self, position: int, problem: str) -> None:
        self.position = position
        self.problem = problem
        super().__init__(problem)


class _Node(msgspec.Struct, frozen=True):
    """A compiled subtree."""

    kind: Kind
    run: Run
    """Columns -> array or numpy scalar."""
    names: frozenset[str] = frozenset()
    can_fail: bool = False
    """True when some values have no result, so that and/or/if must not evaluate it needlessly."""
    literal: int | None = None
    """The value of a whole-number literal."""


class Expression(msgspec.Struct, frozen=True):
    """A compiled expression.

    Attributes
    ----------
    text : str
        As written.
    kind : Kind
        Kind of the result.
    names : frozenset of str
        The parameters that it uses.
    can_fail : bool
        False when it has a result for all values.
    """

    text: str
    kind: Kind
    names: frozenset[str]
    run: Run
    can_fail: bool

    def evaluate(self, columns: Columns, count: int) -> Array:
        """Return one result per row of `columns`.

        Raises
        ------
        PointError
            With the first row at which the arithmetic has no result.
        """
        try:
            return self._evaluate(columns, count)
        except (FloatingPointError, OverflowError):
            return self._row_by_row(columns, count)

    def _evaluate(self, columns: Columns, count: int) -> Array:
        with np.errstate(divide="raise", over="raise", invalid="raise", under="ignore"):
            result = self.run(columns)
        if np.ndim(result) == 0:
            return np.full(count, result, dtype=DTYPES[self.kind])
        return np.asarray(result, dtype=DTYPES[self.kind])

    def _row_by_row(self, columns: Columns, count: int) -> Array:
        """Find the row at fault.

        When no row is, the guard of whole numbers was too careful (it is a
        bound over all rows): the rows' own results are the result.
        """
        rows: list[Array] = []
        for row in range(count):
            here = {name: columns[name][row : row + 1] for name in self.names}
            try:
                rows.append(self._evaluate(here, 1))
            except (FloatingPointError, OverflowError) as error:
                raise PointError(row, in_words(str(error))) from None
        return np.concatenate(rows)


def compile_expression(text: str, kinds: Mapping[str, Kind], where: str) -> Expression:
    """Compile `text` over parameters of the given kinds.

    Parameters
    ----------
    text : str
        The expression.
    kinds : mapping
        Parameter name -> kind, of every parameter that may be used.
    where : str
        The sweep file's key, for messages.

    Raises
    ------
    SweepFileError
        When the text is not in the language, uses an unknown name or mixes kinds.
    """
    if len(text) > LONGEST_TEXT:
        raise SweepFileError(None, where, f"{len(text)} characters; at most {LONGEST_TEXT} are allowed")
    plain = " ".join(text.split("\n")).strip()
    if not plain:
        raise SweepFileError(None, where, "the expression is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns about odd text on its own
            tree = ast.parse(plain, mode="eval")
    except SyntaxError as error:
        raise SweepFileError(
            None, where, f"{describe(plain)} cannot be read: {error.msg}", _hint(plain)
        ) from None
    except (ValueError, MemoryError, RecursionError):
        raise SweepFileError(None, where, "the expression cannot be read: nested too deeply") from None
    node = _Compiler(kinds, where).compile(tree.body, 0)
    return Expression(plain, node.kind, node.names, node.run, node.can_fail)


def _hint(text: str) -> str:
    if "&&" in text or "||" in text:
        return "write and, or, not"
    if "=" in text and not any(mark in text for mark in ("==", "<=", ">=", "!=")):
        return "write == to compare"
    return ""


class _Compiler:
    """Walks the tree once; every method returns the compiled subtree."""

    def __init__(self, kinds: Mapping[str, Kind], where: str) -> None:
        self._kinds = kinds
        self._where = where

    def error(self, problem: str, hint: str = "") -> SweepFileError:
        return SweepFileError(None, self._where, problem, hint)

    def compile(self, tree: ast.expr, depth: int) -> _Node:
        if depth > DEEPEST_TREE:
            raise self.error(f"the expression is nested more than {DEEPEST_TREE} deep")
        depth += 1
        match tree:
            case ast.Constant(value=value):
                return self._constant(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=operator, operand=operand):
                return self._unary(operator, self.compile(operand, depth))
            case ast.BinOp(left=left, op=operator, right=right):
                return self._binary(operator, self.compile(left, depth), self.compile(right, depth))
            case ast.BoolOp(op=operator, values=values):
                parts = [self._condition(self.compile(value, depth), "and/or") for value in values]
                result = parts[-1]
                for part in reversed(parts[:-1]):
                    result = _short_circuit(isinstance(operator, ast.And), part, result)
                return result
            case ast.Compare(left=left, ops=operators, comparators=comparators):
                return self._compare(left, operators, comparators, depth)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._choice(
                    self._condition(self.compile(test, depth), "if"),
                    self.compile(body, depth),
                    self.compile(orelse, depth),
                )
            case ast.Call(func=function, args=arguments, keywords=keywords):
                if not isinstance(function, ast.Name):
                    raise self.error(
                        "only plain functions can be called", f"functions: {', '.join(FUNCTIONS)}"
                    )
                if keywords:
                    raise self.error(f"{function.id}() takes no named arguments")
                if any(isinstance(argument, ast.Starred) for argument in arguments):
                    raise self.error(f"{function.id}() takes no unpacked arguments (*a)")
                return self._call(function.id, [self.compile(argument, depth) for argument in arguments])
            case _:
                found = NOT_IN_LANGUAGE.get(type(tree), type(tree).__name__)
                raise self.error(f"{found} is not part of the arithmetic that is allowed here")

    def _constant(self, value: object) -> _Node:
        match value:
            case bool():
                flag = np.bool_(value)
                return _Node("bool", lambda _: flag)
            case int():
                if value > LARGEST_INT:
                    raise self.error(f"{value} does not fit 64 bits", "write it as a float")
                whole = np.int64(value)
                return _Node("int", lambda _: whole, literal=value)
            case float():
                if not math.isfinite(value):
                    raise self.error("a number is too large")
                number = np.float64(value)
                return _Node("float", lambda _: number)
            case str():
                text = value
                return _Node("str", lambda _: text)
            case _:
                raise self.error(f"{value!r} is neither a number, a text, true nor false")

    def _name(self, name: str) -> _Node:
        if name in self._kinds:  # a parameter called e wins over the constant
            return _Node(self._kinds[name], lambda columns: columns[name], frozenset((name,)))
        if name in CONSTANTS:
            return self._constant(CONSTANTS[name])
        if name in FUNCTIONS:
            raise self.error(f"{name} is a function; write {name}(...)")
        known = ", ".join(self._kinds) or "none"
        hint = near_match(name, [*self._kinds, *FUNCTIONS, *CONSTANTS])
        raise self.error(f"unknown name {name}; the parameters are: {known}", hint)

    def _condition(self, node: _Node, use: str) -> _Node:
        if node.kind != "bool":
            raise self.error(
                f"{use} joins conditions; found a {KIND_WORDS[node.kind]}", "compare it: x != 0, name == 'a'"
            )
        return node

    def _number(self, node: _Node, use: str) -> _Node:
        """Return `node` as a number; true counts 1."""
        if node.kind == "str":
            raise self.error(f"{use} needs numbers; found a text")
        if node.kind == "bool":
            run = node.run
            return _Node(
                "int", lambda columns: np.asarray(run(columns)).astype(np.int64), node.names, node.can_fail
            )
        return node

    def _unary(self, operator: ast.unaryop, node: _Node) -> _Node:
        match operator:
            case ast.Not():
                run = self._condition(node, "not").run
                return _Node("bool", lambda columns: np.logical_not(run(columns)), node.names, node.can_fail)
            case ast.UAdd():
                return self._number(node, "+")
            case ast.USub():
                number = self._number(node, "-")
                run = number.run
                literal = None if number.literal is None else -number.literal
                return _Node(
                    number.kind, lambda columns: np.negative(run(columns)), node.names, node.can_fail, literal
                )
            case _:
                raise self.error("~ is not part of the arithmetic that is allowed here", "write not")

    def _binary(self, operator: ast.operator, left: _Node, right: _Node) -> _Node:
        if type(operator) not in SYMBOLS:
            mark = FOREIGN_SYMBOLS.get(type(operator), "this operator")
            hint = {"^": "write ** for a power", "&": "write and", "|": "write or"}.get(mark, "")
            raise self.error(f"{mark} is not part of the arithmetic that is allowed here", hint)
        symbol = SYMBOLS[type(operator)]
        left, right = self._number(left, symbol), self._number(right, symbol)
        whole = left.kind == "int" and right.kind == "int"
        names = left.names | right.names
        a, b = left.run, right.run
        match symbol:
            case "+" | "-":
                function = np.add if symbol == "+" else np.subtract
                can_fail = left.can_fail or right.can_fail
                if whole:
                    return _Node("int", lambda c: whole_sum(function, a(c), b(c)), names, can_fail)
                return _Node("float", lambda c: function(a(c), b(c)), names, can_fail)
            case "*":
                if whole:
                    return _Node("int", lambda c: whole_product(a(c), b(c)), names, True)
                return _Node("float", lambda c: np.multiply(a(c), b(c)), names, True)
            case "/":
                return _Node("float", lambda c: np.divide(a(c), b(c)), names, True)
            case "//":
                return _Node("int" if whole else "float", lambda c: np.floor_divide(a(c), b(c)), names, True)
            case "%":
                return _Node("int" if whole else "float", lambda c: np.remainder(a(c), b(c)), names, True)
            case _:
                if whole and right.literal is not None and 0 <= right.literal <= 63:
                    exponent = right.literal
                    return _Node("int", lambda c: whole_power(a(c), exponent), names, True)
                return _Node("float", lambda c: np.power(np.asarray(a(c), np.float64), b(c)), names, True)

    def _compare(
        self, left: ast.expr, operators: list[ast.cmpop], comparators: list[ast.expr], depth: int
    ) -> _Node:
        first = self.compile(left, depth)
        links: list[_Node] = []
        for operator, tree in zip(operators, comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                if not isinstance(tree, ast.List | ast.Tuple | ast.Set) or not tree.elts:
                    raise self.error("`in` needs a list of values, such as: n in [16, 32]")
                if len(operators) > 1:
                    raise self.error("`in` cannot be part of a chained comparison", "join with and")
                choices = [self._link(ast.Eq(), first, self.compile(item, depth)) for item in tree.elts]
                result = choices[-1]
                for choice in reversed(choices[:-1]):
                    result = _short_circuit(False, choice, result)
                return result if isinstance(operator, ast.In) else self._unary(ast.Not(), result)
            second = self.compile(tree, depth)
            links.append(self._link(operator, first, second))
            first = second
        result = links[-1]
        for link in reversed(links[:-1]):
            result = _short_circuit(True, link, result)
        return result

    def _link(self, operator: ast.cmpop, left: _Node, right: _Node) -> _Node:
        if type(operator) not in COMPARISONS:
            raise self.error("`is` is not part of the arithmetic that is allowed here", "write ==")
        function: Callable[[Any, Any], Any] = getattr(np, COMPARISONS[type(operator)])
        text = [node.kind == "str" for node in (left, right)]
        if any(text):
            if not all(text):
                other = left if text[1] else right
                raise self.error(f"a text is compared with a {KIND_WORDS[other.kind]}; that is never true")
            if not isinstance(operator, ast.Eq | ast.NotEq):
                raise self.error("text has no order; compare it with == or !=")
            function = text_equal if isinstance(operator, ast.Eq) else text_differs
        a, b = left.run, right.run
        return _Node(
            "bool", lambda c: function(a(c), b(c)), left.names | right.names, left.can_fail or right.can_fail
        )

    def _choice(self, test: _Node, body: _Node, other: _Node) -> _Node:
        kinds = {body.kind, other.kind}
        if len(kinds) == 1:
            kind = body.kind
        elif "str" in kinds:
            raise self.error("the two sides of if/else are a text and a number; one kind is allowed")
        else:
            body, other = self._number(body, "if/else"), self._number(other, "if/else")
            kind = "float" if "float" in (body.kind, other.kind) else "int"
        dtype = DTYPES[kind]

        def run(columns: Columns) -> Any:
            mask = test.run(columns)
            if np.ndim(mask) == 0:
                return (body if mask else other).run(columns)
            result = np.empty(len(mask), dtype=dtype)
            for node, here in ((body, mask), (other, ~mask)):
                if here.any():
                    result[here] = node.run({name: columns[name][here] for name in node.names})
            return result

        can_fail = test.can_fail or body.can_fail or other.can_fail
        return _Node(kind, run, test.names | body.names | other.names, can_fail)

    def _call(self, name: str, arguments: list[_Node]) -> _Node:
        if name not in FUNCTIONS:
            raise self.error(
                f"unknown function {name}; the functions are: {', '.join(FUNCTIONS)}",
                near_match(name, FUNCTIONS),
            )
        numbers = [self._number(argument, f"{name}()") for argument in arguments]
        names = frozenset[str]().union(*(number.names for number in numbers))
        runs = [number.run for number in numbers]
        can_fail = any(number.can_fail for number in numbers)
        if name in ("min", "max"):
            if len(numbers) < 2:
                raise self.error(f"{name}() needs at least two values; found {len(numbers)}")
            pick = np.minimum if name == "min" else np.maximum
            kind: Kind = "float" if any(number.kind == "float" for number in numbers) else "int"

            def extreme(columns: Columns) -> Any:
                result = runs[0](columns)
                for run in runs[1:]:
                    result = pick(result, run(columns))
                return result

            return _Node(kind, extreme, names, can_fail)
        if name == "round" and len(numbers) == 2:
            digits = numbers[1].literal
            if digits is None or not 0 <= digits <= 15:
                raise self.error("round(x, n) needs n as a whole number 0..15")
            first = runs[0]
            return _Node(
                "float", lambda c: np.round(np.asarray(first(c), np.float64), digits), names, can_fail
            )
        if len(numbers) != 1:
            raise self.error(f"{name}() takes one value; found {len(numbers)}")
        only, first = numbers[0], runs[0]
        if name == "abs":
            return _Node(only.kind, lambda c: np.abs(first(c)), names, can_fail)
        if name in ROUNDERS:
            if only.kind == "int":
                return only
            rounder = getattr(np, ROUNDERS[name])
            return _Node("int", lambda c: to_whole(rounder(first(c))), names, True)
        function = getattr(np, name)
        return _Node("float", lambda c: function(np.asarray(first(c), np.float64)), names, True)


def _short_circuit(conjunction: bool, left: _Node, right: _Node) -> _Node:
    """``and``/``or``; a right side that can fail is evaluated only where the left does not decide."""
    names = left.names | right.names
    combine = np.logical_and if conjunction else np.logical_or
    if not right.can_fail:
        return _Node("bool", lambda c: combine(left.run(c), right.run(c)), names, left.can_fail)

    def run(columns: Columns) -> Any:
        known = left.run(columns)
        if np.ndim(known) == 0:
            return right.run(columns) if bool(known) == conjunction else known
        undecided = known if conjunction else ~known
        if undecided.all():
            return right.run(columns)
        result = known.copy()
        if undecided.any():
            result[undecided] = right.run({name: columns[name][undecided] for name in right.names})
        return result

    return _Node("bool", run, names, True)
