"""Row filters over index columns, such as "z_kind == 'spec' and z_quality >= 3"."""

import ast
from collections.abc import Callable

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
    ast.Div: pc.divide,
    ast.BitAnd: pc.bit_wise_and,
}
FUNCTIONS = {"abs": pc.abs, "isfinite": pc.is_finite, "isnull": lambda x: pc.is_null(x, nan_is_null=True)}


def names(where: str) -> list[str]:
    """The columns that a filter reads, sorted. Raises InputError where it is no expression."""
    nodes = list(ast.walk(parse(where)))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return sorted({node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called})


def evaluate(where: str, column: Callable[[str], pa.ChunkedArray]) -> np.ndarray:
    """Bool [N]: the rows that pass. Comparisons with a missing value (null, NaN) are false."""
    try:
        mask = pc.fill_null(visit(parse(where), column, where), False)
    except pa.ArrowException as error:
        raise InputError(f"where: {where!r} compares values of different types ({error}); check the columns") from None
    if not pa.types.is_boolean(mask.type):
        raise InputError(f"where: {where!r} is no condition; compare a column with a value")
    return mask.to_numpy(zero_copy_only=False) if isinstance(mask, pa.Array) else mask.to_numpy()


def parse(where: str) -> ast.expr:
    try:
        return ast.parse(where, mode="eval").body
    except SyntaxError:
        raise InputError(
            f"where: {where!r} is not an expression; write for example \"z_kind == 'spec' and z < 1\""
        ) from None


def visit(node: ast.expr, column, where: str):
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
            for op, right in zip(ops, comparators, strict=True):
                if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.List | ast.Tuple):
                    value = pc.is_in(go(left), value_set=pa.array([ast.literal_eval(e) for e in right.elts]))
                    value = pc.invert(value) if isinstance(op, ast.NotIn) else value
                elif type(op) in COMPARE:
                    value = COMPARE[type(op)](go(left), go(right))
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
    known = f"comparisons, and, or, not, in, + - * / &, {', '.join(FUNCTIONS)}"
    raise InputError(f"where: {ast.unparse(node)!r} in {where!r} is not understood; use {known}")
