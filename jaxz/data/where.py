"""Row filters over index columns, such as "z_kind == 'spec' and z_quality >= 3".

Every comparison with a missing value (null, NaN) is false, `!=` and `not in` too; so `not (z > 1)` is true where z is
missing, `z <= 1` is not, and `isnull(z)` asks for it.
"""

import ast
import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxz.errors import InputError

COMPARE = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
BINARY = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda one, other: divide(one, other),
    ast.BitAnd: pc.bit_wise_and,
}
FUNCTIONS = {"abs": pc.abs, "isfinite": pc.is_finite, "isnull": lambda x: pc.is_null(x, nan_is_null=True)}


Values: TypeAlias = pa.ChunkedArray | pa.Array | pa.Scalar  # a column, what is made of it, or a constant


def divide(one: Values, other: Values) -> Values:
    """Python's division: 3 / 2 of whole numbers is 1.5, which Arrow would cut to 1."""
    if not (pa.types.is_integer(one.type) and pa.types.is_integer(other.type)):
        return pc.divide(one, other)
    return pc.divide_checked(pc.cast(one, pa.float64(), safe=False), pc.cast(other, pa.float64(), safe=False))


def beside(value: Values, other: Values) -> Values:
    """A constant in the type of the column of floats that it is compared with: 0.1 of float32 is 0.1, as in numpy."""
    floats = pa.types.is_floating(value.type) and pa.types.is_floating(other.type)
    return pc.cast(value, other.type) if floats and isinstance(value, pa.Scalar) else value


def known(*sides: Values) -> Values:
    """Where none of the sides is missing."""
    return functools.reduce(pc.and_, (pc.invert(FUNCTIONS["isnull"](side)) for side in sides))


def names(where: str) -> list[str]:
    """The columns that a filter reads, sorted. Raises InputError where it is no expression."""
    return names_in(parse(where))


def names_in(tree: ast.expr) -> list[str]:
    """The columns that an expression reads, sorted; functions that it calls are none."""
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return sorted({node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called})


def training_filter(*conditions: str) -> str | None:
    """All conditions at once as one filter for training; None where none is left once empty ones are dropped.

    Each is parsed by itself, so that none can close another's brackets. Raises InputError for one that is no expression
    or that reads the truth of a simulation.
    """
    trees = [parse(condition) for condition in conditions if condition]
    return observed_only(trees) if trees else None


def observed_only(trees: list[ast.expr]) -> str:
    """All conditions at once as one filter. Raises InputError for one that reads the truth of a simulation."""
    for tree in trees:
        if truth := [name for name in names_in(tree) if name.startswith("true_")]:
            raise InputError(
                f"where: {ast.unparse(tree)!r} reads {truth[0]!r}, the truth of a simulation, which never reaches "
                "training; filter by what is observed"
            )
    return ast.unparse(trees[0] if len(trees) == 1 else ast.BoolOp(ast.And(), trees))


def option_filter(option: str, *conditions: str) -> str:
    """`training_filter` of what an option of a command line chooses, which its sentences name; none may be empty."""
    try:
        return observed_only([parse(condition) for condition in conditions])
    except InputError as error:
        raise InputError(f"{option}: {str(error).removeprefix('where: ')}") from None


def negated(condition: str) -> str:
    """The filter of rows that a condition does not choose."""
    return ast.unparse(ast.UnaryOp(ast.Not(), parse(condition)))


def evaluate(where: str, column: Callable[[str], pa.ChunkedArray]) -> np.ndarray:
    """Bool [N]: the rows that pass.

    Raises InputError for what is no condition on columns, and for values that do not go together.
    """
    tree = parse(where)
    try:
        mask = pc.fill_null(visit(tree, column, where), False)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InputError(f"where: {where!r} cannot be evaluated ({error}); check the columns' types") from None
    if isinstance(mask, pa.Scalar) or not pa.types.is_boolean(mask.type):
        raise InputError(f"where: {where!r} is no condition; compare a column with a value")
    return mask.to_numpy(zero_copy_only=False) if isinstance(mask, pa.Array) else mask.to_numpy()


@functools.lru_cache  # evaluated shard by shard
def parse(where: str) -> ast.expr:
    """The syntax tree. Raises InputError where it is no expression, or nested too deeply to evaluate."""
    try:
        tree = ast.parse(where, mode="eval").body
        ast.unparse(tree)  # which goes deeper into the stack than evaluating does
        return tree
    except (SyntaxError, ValueError):  # ValueError: of null bytes
        raise InputError(
            f"where: {where!r} is not an expression; write for example \"z_kind == 'spec' and z < 1\""
        ) from None
    except (RecursionError, MemoryError):
        raise InputError(f"where: {where[:60]!r} ... is nested too deeply; shorten it") from None


def is_list(node: ast.expr) -> bool:
    """Whether it is a list of constants."""
    try:
        return isinstance(node, ast.List | ast.Tuple) and all(
            isinstance(value, str | int | float) for value in ast.literal_eval(node)
        )
    except ValueError:
        return False


def visit(node: ast.expr, column: Callable[[str], pa.ChunkedArray], where: str) -> Values:
    """The values of an expression."""
    go = lambda child: visit(child, column, where)
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            result = go(values[0])
            for value in values[1:]:
                result = combine(result, go(value))
            return result
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(pc.fill_null(go(operand), False))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return pc.negate(go(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)](go(left), go(right))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            result = None
            for compare, right in zip(ops, comparators, strict=True):
                if isinstance(compare, ast.In | ast.NotIn) and is_list(right):
                    side = go(left)
                    value = pc.is_in(side, value_set=pa.array(ast.literal_eval(right)))
                    value = pc.and_(pc.invert(value), known(side)) if isinstance(compare, ast.NotIn) else value
                elif type(compare) in COMPARE:
                    one, other = go(left), go(right)
                    sides = beside(one, other), beside(other, one)
                    value = COMPARE[type(compare)](*sides)
                    value = pc.and_kleene(value, known(*sides)) if isinstance(compare, ast.NotEq) else value
                else:
                    break
                result = value if result is None else pc.and_kleene(result, value)
                left = right
            else:
                return result
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](go(argument))
        case ast.Name(id=name):
            return column(name)
        case ast.Constant(value=value):
            return pa.scalar(value)
    understood = f"comparisons, and, or, not, in, + - * / &, {', '.join(FUNCTIONS)}"
    raise InputError(f"where: {ast.unparse(node)!r} in {where!r} is not understood; use {understood}")
