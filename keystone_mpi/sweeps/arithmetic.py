"""Arithmetic: the operations of expressions on numpy columns.

Rule: whole numbers are exact or an `OverflowError`, never wrapped; floats
raise `FloatingPointError` where they have no result (the caller sets numpy's
error state).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.values import LARGEST_INT, Kind

CONSTANTS: dict[str, Any] = {
    "pi": math.pi,
    "e": math.e,
    "true": True,
    "false": False,
    "True": True,
    "False": False,
}
FLOAT_FUNCTIONS = ("sqrt", "exp", "log", "log10", "sin", "cos", "tan")
"""Called as numpy calls them."""
ROUNDERS = {"floor": "floor", "ceil": "ceil", "round": "rint"}
"""Name -> numpy's name."""
FUNCTIONS = ("abs", "min", "max", *FLOAT_FUNCTIONS, *ROUNDERS)

NOT_IN_LANGUAGE: dict[type[ast.AST], str] = {
    ast.Attribute: "attribute access (a.b)",
    ast.Subscript: "indexing (a[b])",
    ast.Lambda: "lambda",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.List: "a list outside of `in`",
    ast.Tuple: "a list outside of `in`",
    ast.NamedExpr: "an assignment",
    ast.Starred: "unpacking (*a)",
    ast.Await: "await",
}

KIND_WORDS: dict[Kind, str] = {"int": "number", "float": "number", "str": "text", "bool": "condition"}

SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
FOREIGN_SYMBOLS: dict[type[ast.operator], str] = {
    ast.BitXor: "^",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.MatMult: "@",
}
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
"""Operator -> numpy's name."""


def in_words(message: str) -> str:
    """Translate numpy's floating-point messages."""
    what, _, operation = message.partition(" encountered in ")
    if not operation:
        return message
    if operation in ("divide", "floor_divide", "remainder"):
        return "a result too large for a number" if what == "overflow" else "division by zero"
    match what:
        case "divide by zero":
            return "zero to a negative power" if operation == "power" else f"{operation} of zero"
        case "invalid value":
            return f"{operation} of a value outside its domain"
        case _:
            return f"a result too large for a number (in {operation})"


def text_equal(a: Any, b: Any) -> Any:
    """Compare texts: columns of str objects, or single ones."""
    result = a == b
    return np.bool_(result) if isinstance(result, bool) else np.asarray(result, np.bool_)


def text_differs(a: Any, b: Any) -> Any:
    """Compare texts the other way."""
    return np.logical_not(text_equal(a, b))


def _extent(values: Any) -> int:
    """Largest magnitude, exactly."""
    if np.ndim(values) == 0:
        return abs(int(values))
    if len(values) == 0:
        return 0
    return max(-int(values.min()), int(values.max()), 0)


_TOO_LARGE = "a whole number too large for 64 bits; multiply by 1.0 to get a float"


def whole_sum(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """Add or subtract whole numbers, exactly."""
    if _extent(a) + _extent(b) > LARGEST_INT:
        raise OverflowError(_TOO_LARGE)
    return function(a, b)


def whole_product(a: Any, b: Any) -> Any:
    """Multiply whole numbers, exactly."""
    if _extent(a) * _extent(b) > LARGEST_INT:
        raise OverflowError(_TOO_LARGE)
    return np.multiply(a, b)


def whole_power(a: Any, exponent: int) -> Any:
    """Raise whole numbers to a literal power 0..63, exactly."""
    if _extent(a) ** exponent > LARGEST_INT:
        raise OverflowError(_TOO_LARGE)
    return np.power(a, np.int64(exponent))


def to_whole(values: Any) -> Any:
    """Turn rounded floats into whole numbers."""
    if np.any(np.abs(values) >= 2.0**63):
        raise OverflowError(_TOO_LARGE)
    return values.astype(np.int64)
