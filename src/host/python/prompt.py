"""The person's prompt: which lines make a cell, and how it is compiled."""

import ast
import codeop
import importlib
import importlib.machinery
import importlib.util
import io
import os
import sys

_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


_LIBRARY = os.path.dirname(os.__file__)
_OWN_DIRECTORIES = {_LIBRARY, os.path.join(_LIBRARY, "lib-dynload")}
_OWN_DIRECTORIES |= {
    os.path.dirname(module.__file__)
    for module in (sys.modules.get("_json"), sys.modules.get("_struct"))
    if getattr(module, "__file__", None)
}


class Lines:
    """Collects what is typed until it is a whole cell, as Python's prompt does."""

    def __init__(self):
        self._lines = []
        self._pasted = False
        self._compile = codeop.CommandCompiler()
        self._compile.compiler.flags |= _AWAIT

    def add(self, line):
        """Take a line, or several that were pasted at once.

        Returns: the source (str) once it is whole, "" if there is nothing to
            run, None if more has to come.
        """
        self._lines.append(line)
        self._pasted = self._pasted or "\n" in line
        source = "\n".join(self._lines)
        if all(not text.strip() or text.lstrip().startswith("#") for text in source.split("\n")):
            self.clear()
            return ""
        if not self._is_whole(source):
            return None
        self.clear()
        return source

    def _is_whole(self, source):
        try:
            if self._pasted:
                return self._compile(source + "\n", "<prompt>", "exec") is not None
            return self._compile(source, "<prompt>", "single") is not None
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
            # What is wrong is told when it is run.
            return True

    def clear(self):
        """Forget the lines so far."""
        self._lines.clear()
        self._pasted = False

    def pending(self):
        """True if a block has begun."""
        return bool(self._lines)


def prompt(name, default):
    """The text of `sys.ps1` or `sys.ps2`, if a cell has set it."""
    try:
        return str(getattr(sys, name))
    except Exception:
        return default


def set_terminal(term, colorterm):
    """Tell child processes what the person's terminal is."""
    for name, value in (("TERM", term), ("COLORTERM", colorterm)):
        if value:
            os.environ[name] = value


def begin(globals):
    """Prepare line editing with the names of the session.

    Returns: the file of the `readline` module (str), "" if the interpreter
        itself holds it, None without one.
    """
    try:
        readline = _import("readline")
        rlcompleter = _import("rlcompleter")
    except ImportError:
        return None
    if "libedit" in (readline.__doc__ or ""):
        return None
    readline.set_completer(rlcompleter.Completer(globals).complete)
    readline.parse_and_bind("tab: complete")
    return getattr(readline, "__file__", None) or ""


def _is_our_own(name):
    """True for a module that was loaded from where the interpreter's own are."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:
        return False
    origin = spec.origin or ""
    return origin == "built-in" or os.path.dirname(origin) in _OWN_DIRECTORIES


def _import(name):
    """Import a module of the standard library, whatever lies in the working
    directory."""
    if _is_our_own(name):
        return sys.modules[name]
    path = [entry for entry in sys.path if entry and os.path.abspath(entry) != os.getcwd()]
    if name in sys.builtin_module_names:
        return importlib.import_module(name)
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class TerminalInput(io.TextIOBase):
    """`sys.stdin` while a cell of the person's runs: the terminal for that cell,
    nothing for all others."""

    name = "<stdin>"
    mode = "r"

    def __init__(self, nothing, is_persons):
        self._nothing = nothing
        self._is_persons = is_persons
        self._terminal = None

    def _stream(self):
        if not self._is_persons():
            return self._nothing
        if self._terminal is None or self._terminal.closed:
            self._terminal = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
        return self._terminal

    @property
    def buffer(self):
        return self._stream().buffer

    @property
    def encoding(self):
        return self._stream().encoding

    @property
    def errors(self):
        return self._stream().errors

    def readable(self):
        return True

    def fileno(self):
        return self._stream().fileno()

    def isatty(self):
        return self._stream().isatty()

    def read(self, size=-1, /):
        return self._stream().read(size)

    def readline(self, size=-1, /):
        return self._stream().readline(size)

    def close(self):
        pass
