"""Small faults put into the source, one at a time: what a suite of tests should notice.

The operators follow the kinds of faults that have slipped through here before: a border moved by
one, the wrong one of two like names, an argument or a result that reaches nothing, a condition that
is always met.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_LIKE = (
    ("score", "reward"),
    ("scores", "rewards"),
    ("clip_low", "clip_high"),
    ("min", "max"),
    ("amin", "amax"),
    ("floor", "ceil"),
    ("argmin", "argmax"),
    ("any", "all"),
    ("sum", "mean"),
    ("first", "last"),
    ("prompt", "response"),
    ("mini_batch", "everyones"),
    ("own", "wanted"),
    ("SUM", "MAX"),
    ("get_rank", "get_world_size"),
    ("adam_beta1", "adam_beta2"),
    ("length_full_until", "length_floor_at"),
)
"""Names of which one may stand where the other should."""
_LIKE_NAME = dict(_LIKE) | {b: a for a, b in _LIKE}


@dataclass(frozen=True)
class Mutant:
    """One changed statement of a file."""

    path: str
    line: int
    before: str
    after: str
    source: str
    """The whole file with the change."""

    @property
    def name(self) -> str:
        """Stays the same while the statement does, wherever it moves in its file."""
        return f"{self.path}: {self.before} -> {self.after}"


def mutants_of(root: Path, path: str) -> Iterator[Mutant]:
    """Every mutant of a Python file.

    Args:
        root: Of the checkout.
        path: Of the file, from there.
    """
    source = (root / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    names = _names(tree)
    lines = source.splitlines(keepends=True)
    for statement in _statements(tree):
        for changed in _changed(statement):
            if not _names(changed) <= names:
                continue  # A name that is nowhere in the file: noticed by any run.
            first, last = statement.lineno - 1, statement.end_lineno
            text = _header(changed) if _body(statement) else ast.unparse(changed)
            before = _header(statement) if _body(statement) else ast.unparse(statement)
            if _body(statement):
                last = statement.body[0].lineno - 1
            indent = " " * statement.col_offset
            new = [*lines[:first], *_indented(text, indent), *lines[last:]]
            if _parses("".join(new)):
                yield Mutant(path, statement.lineno, before, text, "".join(new))


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """What runs: no imports, docstrings, definitions of classes or signatures."""
    skipped = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Raise, ast.Assert)
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or isinstance(node, (*skipped, ast.Try, ast.With)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.AnnAssign) and node.value is None:
            continue
        if _body(node) and node.body[0].lineno == node.lineno:
            continue
        yield node


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _body(statement: ast.stmt) -> bool:
    return hasattr(statement, "body")


def _header(statement: ast.stmt) -> str:
    alone = copy.deepcopy(statement)
    alone.body = [ast.Pass()]
    if hasattr(alone, "orelse"):
        alone.orelse = []
    return ast.unparse(alone).rsplit("\n", 1)[0]


def _indented(text: str, indent: str) -> list[str]:
    return [f"{indent}{line}\n" for line in text.split("\n")]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _changed(statement: ast.stmt) -> Iterator[ast.stmt]:
    """Copies of a statement, each with one change; nested statements are left alone."""
    for place, node in enumerate(_expressions(statement)):
        for operator in _OPERATORS:
            for number in range(sum(1 for _ in operator(node))):
                changed = copy.deepcopy(statement)
                target = list(_expressions(changed))[place]
                wanted = list(operator(target))[number]
                if target is changed:
                    yield wanted
                    continue
                _replace(changed, target, wanted)
                yield ast.fix_missing_locations(changed)


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The statement and the expressions in it, outermost first; no annotations or messages."""
    yield statement
    waiting = [
        child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)
    ]
    if isinstance(statement, ast.AnnAssign):
        waiting = [statement.value]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (ast.JoinedStr, ast.excepthandler)) or _is_log(node):
            continue
        yield node
        waiting += [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)
        ]


def _is_log(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")


def _replace(root: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(root):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                setattr(parent, name, [new if item is old else item for item in value])


def _other_comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        new = copy.deepcopy(node)
        new.ops[0] = _COMPARISONS[type(node.ops[0])]()
        yield new


def _other_arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _ARITHMETIC:
        new = copy.deepcopy(node)
        new.op = _ARITHMETIC[type(node.op)]()
        yield new
    if isinstance(node, ast.BoolOp):
        new = copy.deepcopy(node)
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield new
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield node.operand


def _other_constant(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)


def _other_name(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute) and node.attr in _LIKE_NAME:
        yield ast.Attribute(node.value, _LIKE_NAME[node.attr], node.ctx)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _LIKE_NAME:
        yield ast.Name(_LIKE_NAME[node.id], node.ctx)


def _argument_left_out(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        for number, keyword in enumerate(node.keywords):
            if keyword.arg not in (None, "strict"):
                new = copy.deepcopy(node)
                del new.keywords[number]
                yield new


def _call_left_out(node: ast.AST) -> Iterator[ast.AST]:
    """`x.f(y)` becomes `x`: what `f` does reaches nothing."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, (ast.Call, ast.Subscript, ast.BinOp))
    ):
        yield node.func.value


def _condition_always_met(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.If, ast.IfExp)):
        for value in (True, False):
            new = copy.copy(node)
            new.test = ast.Constant(value)
            yield new


def _statement_left_out(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _is_log(node.value):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign):
        yield ast.Pass()
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        used = (n.id for n in ast.walk(node.value) if isinstance(n, ast.Name))
        if name in used and not isinstance(node.value, ast.Name):
            yield ast.Pass()


_OPERATORS = (
    _other_comparison,
    _other_arithmetic,
    _other_constant,
    _other_name,
    _argument_left_out,
    _call_left_out,
    _condition_always_met,
    _statement_left_out,
)
