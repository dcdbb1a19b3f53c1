"""An exception as people read it, when every hook of the user may raise."""

import errno
import sys
import traceback

# How file names of cells and of these helpers begin.
_CELL = "<cell "
_OURS = "<pythond>"
# Longest texts that travel with a cell, in characters.
_LONGEST_MESSAGE = 64 << 10
_LONGEST_TRACEBACK = 1 << 20


def describe(error):
    """Describe an exception that left a cell.

    Args: error (BaseException).
    Returns: (type name, message, traceback), three str.
    """
    if isinstance(error, SystemExit):
        code = error.code
        return "SystemExit", f"exit({0 if code is None else _text(code)})", ""
    error.__traceback__ = _from_cell(error.__traceback__)
    _remember(error)
    return _type_name(type(error)), _cut(_text(error), _LONGEST_MESSAGE), _format(error)


def _remember(error):
    """What `pdb.pm()` and its kin look at, as the prompt leaves it."""
    try:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        if sys.version_info >= (3, 12):
            sys.last_exc = error
    except BaseException:
        pass


def _type_name(kind):
    try:
        module, name = kind.__module__, kind.__qualname__
        if not isinstance(module, str) or module in ("builtins", "__main__"):
            return str(name)
        return f"{module}.{name}"
    except BaseException:
        return "<unknown exception>"


def _text(value):
    try:
        return str(value)
    except BaseException:
        return f"<exception str() failed for {_type_name(type(value))}>"


def _format(error):
    try:
        shown = traceback.TracebackException(
            type(error), error, error.__traceback__, compact=True
        )
        _hide_ours(shown, set())
        return _cut("".join(shown.format()), _LONGEST_TRACEBACK)
    except BaseException as failure:
        return (
            f"{_type_name(type(error))}: {_text(error)}\n"
            f"(its traceback cannot be shown: {_type_name(type(failure))})\n"
        )


def _hide_ours(shown, seen):
    """Take our helpers out of every stack that is shown."""
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    shown.stack[:] = [frame for frame in shown.stack if not frame.filename.startswith(_OURS)]
    _hide_ours(shown.__cause__, seen)
    _hide_ours(shown.__context__, seen)
    for part in getattr(shown, "exceptions", None) or ():
        _hide_ours(part, seen)


def _from_cell(trace):
    """Drop the frames before the first of a cell's: they are not the user's.

    Where no cell's frame is, only ours are dropped.
    """
    first = trace
    while first is not None:
        if first.tb_frame.f_code.co_filename.startswith(_CELL):
            return first
        first = first.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace


def _cut(text, most):
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[{len(text) - most} characters left out]\n{text[-half:]}"


def explain_uncaught(error):
    """Print an exception that no cell owns to the session's standard error."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        sys.stderr.write(text)
    except BaseException:
        pass


def as_interrupt(error):
    """What an interrupt raises in a thread, where it cut a system call short.

    Args: error (BaseException), what left the cell.
    Returns: BaseException.
    """
    if isinstance(error, KeyboardInterrupt):
        if _is_cut(error.__context__):
            error.__context__ = None
        return error
    if _is_cut(error):
        return KeyboardInterrupt().with_traceback(error.__traceback__)
    return error


def _is_cut(error):
    return isinstance(error, OSError) and error.errno == errno.ECANCELED
