"""Source to compiled code to a shown value, as the Python prompt does it.

Loaded once per zygote with a private copy of the builtins, so that cells which
delete or replace builtins do not break it.
"""

import __future__ as future
import ast
import io
import linecache
import sys

_ONLY_AST = ast.PyCF_ONLY_AST
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_FUTURES = 0
for _name in future.all_feature_names:
    _FUTURES |= getattr(future, _name).compiler_flag
_Expr = ast.Expr
_StringIO = io.StringIO
_Expression = ast.Expression
_Interactive = ast.Interactive

# Above this size no syntax tree of Python objects is made: it takes a hundred
# times the memory of the source.
_LARGE_SOURCE = 1 << 20
# How many lines from the end of a large source may begin its last statement.
_TAIL_LINES = 2000
# Sources that tracebacks and `inspect.getsource` can show, in bytes.
_SOURCES_KEPT = 64 << 20
_SOURCE_OVERHEAD = 400

# Flags of `from __future__ import` that cells have used, as at the prompt.
_inherited = 0
_kept = {}
_kept_bytes = 0


def compile_cell(source, filename):
    """Compile one cell.

    Args: source (str); filename (str), the name that tracebacks show.
    Returns: (list of code objects in order, True if the value of the last is to
        be shown); those with CO_COROUTINE set must be awaited.
    Raises: SyntaxError, ValueError, MemoryError, RecursionError as `compile`.
    """
    flags = _inherited | _AWAIT
    if len(source) < 500 and "\n" not in source and "=" not in source:
        try:
            return [compile(source, filename, "eval", flags, True)], True
        except SyntaxError:
            pass
    if len(source) > _LARGE_SOURCE:
        return _compile_large(source, filename, flags)
    tree = compile(source, filename, "exec", flags | _ONLY_AST, True)
    return _compile_tree(tree, filename, flags)


def compile_typed(source, filename):
    """Compile what was typed at the prompt: like `compile_cell`, but one
    statement prints the values of the expressions in it.

    Args, Returns, Raises: as `compile_cell`.
    """
    if len(source) <= _LARGE_SOURCE:
        flags = _inherited | _AWAIT
        tree = compile(source, filename, "exec", flags | _ONLY_AST, True)
        if len(tree.body) == 1 and not isinstance(tree.body[0], _Expr):
            code = compile(_Interactive(tree.body), filename, "single", flags, True)
            return [_remember_futures(code)], False
    return compile_cell(source, filename)


def _compile_tree(tree, filename, flags):
    """Compile a module's syntax tree, its last expression apart."""
    codes = []
    value = None
    if tree.body and isinstance(tree.body[-1], _Expr):
        value = _Expression(tree.body.pop().value)
    if tree.body:
        codes.append(_remember_futures(compile(tree, filename, "exec", flags, True)))
    if value is not None:
        codes.append(compile(value, filename, "eval", flags | _inherited, True))
    return codes, value is not None


def _remember_futures(code):
    global _inherited
    _inherited |= code.co_flags & _FUTURES
    return code


def _compile_large(source, filename, flags):
    """Split off the last line that begins a statement, without a syntax tree of
    the whole.

    A tail is whole exactly if it parses and everything before it compiles alone:
    an open string, bracket, block or line continuation makes the head fail.
    """
    end = len(source)
    for _ in range(_TAIL_LINES):
        start = source.rfind("\n", 0, end - 1 if end else 0) + 1
        tail = source[start:]
        if tail.strip() and (start == 0 or tail[0] not in " \t\f#)]}'\""):
            tree = None
            try:
                tree = compile(tail, filename, "exec", flags | _ONLY_AST, True)
            except (SyntaxError, ValueError):
                pass
            if tree is not None:
                if not tree.body or not isinstance(tree.body[-1], _Expr):
                    break
                if start == 0:
                    return _compile_tree(tree, filename, flags)
                try:
                    head = compile(source[:start], filename, "exec", flags, True)
                except (SyntaxError, ValueError):
                    pass
                else:
                    ast.increment_lineno(tree, source.count("\n", 0, start))
                    head = _remember_futures(head)
                    codes, shows = _compile_tree(tree, filename, flags | _inherited)
                    return [head, *codes], shows
        if start == 0:
            break
        end = start
    return [_remember_futures(compile(source, filename, "exec", flags, True))], False


def remember_source(source, filename):
    """Let tracebacks and `inspect.getsource` find the lines of a cell."""
    global _kept_bytes
    size = len(source) + _SOURCE_OVERHEAD
    # Lines end where Python's own end, not at every character that
    # `str.splitlines` takes for one.
    lines = _StringIO(source, newline=None).readlines()
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if not isinstance(linecache.cache, dict):
        linecache.cache = {}
    linecache.cache[filename] = (len(source), None, lines, filename)
    _kept[filename] = size
    _kept_bytes += size
    while _kept_bytes > _SOURCES_KEPT and len(_kept) > 1:
        oldest = next(iter(_kept))
        _kept_bytes -= _kept.pop(oldest, 0)
        linecache.cache.pop(oldest, None)


def show(value):
    """The text of a value: `str` raw, everything else its `repr`.

    Returns: str, or None if the session has a display hook of its own, which
        has then been called.
    """
    hook = getattr(sys, "displayhook", None)
    if hook is not None and hook is not sys.__displayhook__:
        hook(value)
        return None
    return str(value) if isinstance(value, str) else repr(value)


def show_typed(value):
    """The text of a value as Python's prompt shows it.

    Returns: as `show`.
    """
    hook = getattr(sys, "displayhook", None)
    if hook is not None and hook is not sys.__displayhook__:
        hook(value)
        return None
    return repr(value)


def replay_form(source):
    """The form in which a successful cell stands in `history.py`.

    Returns: the source where a file can hold it as it is, else a statement
        that replays it; always something that parses.
    """
    flags = _ONLY_AST | _inherited
    for candidate in (source, source.strip()):
        try:
            tree = compile(candidate, "<history>", "exec", flags, True)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        imports_future = any(
            isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
        )
        if not imports_future:
            return candidate
        return f"exec(compile({source!r}, '<history>', 'exec'))"
    return (
        "# top-level await\n"
        "__import__('asyncio').get_event_loop().run_until_complete("
        f"eval(compile({source!r}, '<history>', 'exec', {_AWAIT})))"
    )
