"""Look into a namespace without changing it: names, sizes, completions."""

import linecache
import sys
import threading

# `import rlcompleter` would import readline, which may write to a terminal
# that is not there.
_had = "readline" in sys.modules
if not _had:
    sys.modules["readline"] = None
import rlcompleter  # noqa: E402

if not _had:
    del sys.modules["readline"]

_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset, range, memoryview)


def variables(namespace):
    """Public names with type, size in bytes and length.

    Returns: list of (name, type name, size or None, length or None).
    """
    rows = []
    for name, value in list(namespace.items()):
        if isinstance(name, str) and not name.startswith("_"):
            rows.append((_plain(name), _plain(_type_name(value)), _size(value), _length(value)))
    return rows


def _plain(text):
    """A text without lone surrogates, which no JSON can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _type_name(value):
    kind = type(value)
    module = getattr(kind, "__module__", None)
    name = getattr(kind, "__qualname__", "?")
    if not isinstance(module, str) or module in ("builtins", "__main__"):
        return str(name)
    return f"{module}.{name}"


def _size(value):
    try:
        return int(sys.getsizeof(value))
    except Exception:
        return None


def _length(value):
    try:
        if isinstance(value, _SIZED):
            return len(value)
        shape = getattr(type(value), "shape", None)
        if shape is not None:
            return int(value.shape[0])
    except Exception:
        pass
    return None


def completions(namespace, text, most):
    """At most `most` completions of `text`, each once.

    A completer of the user's objects that raises ends the list.
    """
    completer = rlcompleter.Completer(dict(namespace))
    found = []
    for state in range(most):
        try:
            match = completer.complete(text, state)
        except Exception:
            break
        if match is None:
            break
        found.append(_plain(match))
    return found


# How file names of cells and of these helpers begin.
_CELL = "<cell "
_OURS = "<pythond>"
# The file name of the code that loads us.
_BOOT = "<string>"
_MOST_THREADS = 100
_MOST_FRAMES = 100


def place(ident):
    """Which step a thread is at.

    Returns: (id of its frame, instruction), or None if it runs no Python.
    """
    frame = sys._current_frames().get(ident)
    return None if frame is None else (id(frame), frame.f_lasti)


def stacks():
    """Where every thread is, the innermost frame last.

    Returns: list of (thread name, ident, list of (file, line, function, source line)).
    """
    names = {thread.ident: thread.name for thread in list(threading._active.values())}
    own = threading.get_ident()
    rows = []
    for ident, frame in list(sys._current_frames().items())[:_MOST_THREADS]:
        if ident == own:
            continue
        frames = []
        while frame is not None and len(frames) < _MOST_FRAMES:
            code = frame.f_code
            frames.append((code.co_filename, frame.f_lineno or 0, code.co_name))
            frame = frame.f_back
        frames.reverse()
        if frames and frames[0][0].startswith(_OURS):
            # A thread of ours, on its way to start a cell.
            continue
        frames = [frame for frame in frames if not frame[0].startswith(_OURS)]
        first = [at for at, (file, _, _) in enumerate(frames) if file.startswith(_CELL)]
        if first:
            frames = frames[first[0] :]
        elif frames and frames[0][0] == _BOOT:
            frames = frames[1:]
        shown = [
            (_plain(file), line, _plain(name), _plain(linecache.getline(file, line).strip()))
            for file, line, name in frames
        ]
        rows.append((_plain(names.get(ident) or ""), ident, shown))
    return rows
