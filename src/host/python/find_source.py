"""Let `inspect.getsource` find classes that cells defined.

`inspect` looks for a class in its module's file; `__main__` of a session has
none. The sources of cells are in `linecache`, so the newest that defines the
class answers.
"""

import ast
import inspect
import linecache

_getfile = inspect.getfile


def install(prefix):
    """Teach `inspect.getfile` about cells; `prefix` begins their file names."""

    def getfile(object):  # noqa: A002 - the name is part of the signature that is replaced
        try:
            return _getfile(object)
        except (TypeError, OSError):
            if isinstance(object, type) and object.__module__ == "__main__":
                found = _defining_cell(object.__qualname__, prefix)
                if found is not None:
                    return found
            raise

    getfile.__doc__ = _getfile.__doc__
    getfile.__module__ = _getfile.__module__
    inspect.getfile = getfile


def _defining_cell(qualified_name, prefix):
    names = [name for name in qualified_name.split(".") if name != "<locals>"]
    for filename in reversed(list(linecache.cache)):
        if not filename.startswith(prefix):
            continue
        source = "".join(linecache.getlines(filename))
        if f"class {names[-1]}" in source and _defines(source, names):
            return filename
    return None


def _defines(source, names):
    try:
        tree = compile(
            source, "<cell>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True
        )
    except (SyntaxError, ValueError):
        return False
    return _search(tree, names)


def _search(node, names):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if child.name != names[0]:
                continue
            if len(names) == 1:
                if isinstance(child, ast.ClassDef):
                    return True
            elif _search(child, names[1:]):
                return True
        elif _search(child, names):
            return True
    return False
