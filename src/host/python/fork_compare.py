"""What a fork cell has changed in place: values of the namespace are looked at
before it runs and once more when it has, in bounded time.
"""

import io
import pickle
import time
import types

# What is compared for changes in place: in full up to so many bytes each and in
# all, else by a sample; and how long that may take in all, in seconds of CPU.
_FULL = 64 << 10
_FULL_ITEMS = 5000
_FULL_IN_ALL = 1 << 20
_COMPARING = 0.02
_SAMPLE = 256

OWN_NAMES = frozenset(
    ("__builtins__", "__name__", "__doc__", "__package__", "__loader__", "__spec__",
     "__annotations__", "__file__", "__cached__", "__warningregistry__", "_")
)  # fmt: skip


def digests(values):
    """What to compare with later, of names that can be changed in place.

    Returns: dict of name to (True if it is all of it, something to compare).
    """
    found = {}
    room = _FULL_IN_ALL
    until = deadline()
    for name, value in values.items():
        if not _is_compared(name, value):
            continue
        if time.thread_time() > until:
            found[name] = (False, None)
            continue
        digest = _digest(value, min(room, _FULL))
        if digest[0]:
            room -= len(digest[1])
        found[name] = digest
    return found


def deadline():
    """When, in seconds of this thread's CPU, comparing that begins now is to end."""
    return time.thread_time() + _COMPARING


def look_again(before, value, until):
    """What has become of a value.

    Args: before (one of those in `digests`); value (any) that has the name now;
        until (float, see `deadline`), after which nothing is looked at.
    Returns: "same", "changed" or "unknown".
    """
    whole, digest = before
    now = (False, None)
    if time.thread_time() <= until:
        now = _digest(value, len(digest) + 1 if whole else 0)
        if whole and not now[0]:
            # It has grown, or cannot be compared any more.
            return "changed"
    if digest is not None and now[1] is not None and now[1] != digest:
        return "changed"
    return "same" if whole and now[1] is not None else "unknown"


def _is_compared(name, value):
    if not isinstance(name, str) or name in OWN_NAMES:
        return False
    kind = type(value)
    if kind in (int, float, str, bytes, bool, complex, type(None), tuple, frozenset, range):
        return kind is tuple and bool(value)
    if isinstance(value, type):
        return value.__module__ == "__main__"
    return not isinstance(value, _NOT_COMPARED)


_NOT_COMPARED = (
    types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    types.GeneratorType, io.IOBase,
)  # fmt: skip


class _Comparison(pickle.Pickler):
    """Pickles to compare: nothing of a user's is called, what has no content of
    its own stands for itself."""

    def reducer_override(self, value):
        kind = type(value)
        if value is complex:
            return NotImplemented
        if issubclass(kind, type) or kind in _BY_IDENTITY:
            return complex, (float(id(value)), 0.0)
        if kind.__module__.partition(".")[0] in ("numpy", "collections", "datetime", "array"):
            return NotImplemented
        if (
            getattr(kind, "__reduce_ex__", None) is not object.__reduce_ex__
            or getattr(kind, "__reduce__", None) is not object.__reduce__
            or getattr(kind, "__getstate__", None) is not getattr(object, "__getstate__", None)
            or getattr(kind, "__slots__", None)
            or kind.__module__ != "__main__"
        ):
            raise _NotComparable
        return complex, (float(id(kind)), float(id(value))), vars(value)


class _NotComparable(Exception):
    pass


_BY_IDENTITY = frozenset(
    (types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.MethodType)
)


class _Bounded(io.RawIOBase):
    def __init__(self, most):
        self.parts = []
        self.room = most

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise _NotComparable
        self.parts.append(bytes(data))
        return len(data)


def _digest(value, room):
    """What to compare of a value: (True if it is all of it, something)."""
    try:
        if isinstance(value, type):
            # What its attributes are, not what those hold.
            return True, repr([(name, id(it)) for name, it in vars(value).items()]).encode()
        if room > 0 and _length(value) <= _FULL_ITEMS and _bytes_of(value) <= room:
            file = _Bounded(room)
            _Comparison(file, 5).dump(value)
            return True, b"".join(file.parts)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
    try:
        return False, _sample(value)
    except Exception:
        return False, None


def _length(value):
    return len(value) if type(value) in (list, dict, set, tuple, bytearray) else 0


def _bytes_of(value):
    if type(value).__module__ == "numpy" and hasattr(value, "nbytes"):
        return int(value.nbytes)
    return 0


def _sample(value):
    """Something that says most changes of a large value, in little time."""
    kind = type(value)
    if kind in (list, tuple):
        step = max(1, len(value) // _SAMPLE)
        return len(value), [id(item) for item in value[::step]]
    if kind is dict:
        ends = [(id(k), id(v)) for k, v in list(_ends(value))]
        return len(value), ends
    if kind is set:
        return len(value)
    if kind is bytearray:
        step = max(1, len(value) // _SAMPLE)
        return len(value), bytes(value[::step])
    if kind.__module__ == "numpy" and hasattr(value, "nbytes"):
        flat = value.reshape(-1) if value.flags.c_contiguous else value.ravel(order="K")[:_SAMPLE]
        step = max(1, flat.size // _SAMPLE)
        return value.shape, str(value.dtype), flat[::step].tobytes()
    if kind.__module__.partition(".")[0] == "pandas":
        return getattr(value, "shape", None), [str(name) for name in getattr(value, "columns", ())]
    return None


def _ends(table):
    items = iter(table.items())
    for _ in range(_SAMPLE // 2):
        item = next(items, None)
        if item is None:
            return
        yield item
    items = reversed(table.items())
    for _ in range(_SAMPLE // 2):
        item = next(items, None)
        if item is None:
            return
        yield item
