"""What is looked at before a fork cell's process is made, and put right in it.

What the cell then changes, and how it comes back, is in `fork_values.py`.
"""

import _imp
import asyncio
import ctypes
import faulthandler
import gc
import importlib
import os
import random
import signal
import sys
import types

_cloudpickle = None


def install(cloudpickle):
    """Take the cloudpickle that we carry. Once, before the first fork."""
    global _cloudpickle
    _cloudpickle = cloudpickle


def words(error):
    """An exception in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}"[:500] if text else name


# In the session, before the fork.


def import_locks_are_free():
    """True while no thread imports a module."""
    for reference in list(importlib._bootstrap._module_locks.values()):
        lock = reference()
        if lock is not None and lock.owner is not None:
            return False
    return True


def hold_imports():
    """Take the lock of imports, under which each begins.

    Returns: True if no thread imports a module.
    """
    _imp.acquire_lock()
    try:
        return import_locks_are_free()
    except Exception:
        return False


def release_imports():
    """Let go of what `hold_imports` took."""
    _imp.release_lock()


def threads():
    """How many threads have run Python and still do, this one included."""
    return len(sys._current_frames())


def obstacles(libraries):
    """What in this process a child cannot do without and does not have.

    Args: libraries (list of str), paths of what is loaded.
    Returns: (why it must not be forked or None, list of warnings).
    """
    warnings = []
    try:
        refusal = _cuda(libraries)
        _find_threads(libraries, warnings)
    except Exception as error:
        # A library that fails when it is asked says nothing about forking.
        refusal = None
        warnings.append(f"it is not known whether forking is safe: {words(error)}")
    return refusal, warnings


def _cuda(libraries):
    holder = None
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        holder = "torch"
    else:
        for path in libraries:
            if os.path.basename(path).startswith("libcuda.so") and _has_context(path):
                holder = "a library"
    if holder is None:
        return None
    return (
        f"{holder} holds a CUDA context, which does not work in a child process; "
        "use `fire`, or fork in a session that has not used the GPU"
    )


def _has_context(path):
    driver = ctypes.CDLL(path)
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        # Not initialized, or no device.
        return False
    for number in range(count.value):
        device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), number) != 0:
            continue
        state = driver.cuDevicePrimaryCtxGetState
        if state(device, ctypes.byref(flags), ctypes.byref(active)) == 0 and active.value:
            return True
    return False


def _find_threads(libraries, warnings):
    """Libraries whose own threads are not in the child."""
    without = "its threads are not there in the child: using it there may wait for ever"
    if "polars" in sys.modules:
        warnings.append(f"polars: {without}")
    if "grpc._cython.cygrpc" in sys.modules:
        warnings.append(f"grpc: {without}")
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if context is not None and getattr(context, "_initialized", False):
        warnings.append(f"tensorflow: {without}")
    if getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None):
        warnings.append(f"jax: {without}")


def remember(namespace):
    """The classes and functions that the session has: what is pickled in the
    child refers to them by identity.

    Returns: dict of `id` to object; it keeps them alive.
    """
    known = {}

    def add_class(cls):
        if id(cls) in known:
            return
        known[id(cls)] = cls
        for value in list(vars(cls).values()):
            if isinstance(value, type) and value.__module__ == cls.__module__:
                add_class(value)

    for value in list(namespace.values()):
        kind = type(value)
        if kind is types.FunctionType:
            known[id(value)] = value
        elif issubclass(kind, type):
            if value.__module__ == "__main__":
                add_class(value)
        elif getattr(kind, "__module__", None) == "__main__":
            add_class(kind)
    return known


# In the child.


def enter(stdout, stderr):
    """First in the child: put right what the fork left behind.

    Args: stdout, stderr (text streams), those of the cell.
    """
    gc.freeze()
    _forget_imports()
    sys.stdout, sys.stderr = stdout, stderr
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.enable(2)
    except (ValueError, OSError):
        pass
    asyncio.set_event_loop(None)
    for module, name in _LOCKS:
        _unlock(getattr(sys.modules.get(module), name, None))
    _unlock(_cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK)
    random.seed()
    _reseed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


def _forget_imports():
    """A thread that imported when we were forked is not here: what it held is
    free, and what it had half imported is not there."""
    bootstrap = importlib._bootstrap
    held = False
    for name, reference in list(bootstrap._module_locks.items()):
        lock = reference()
        if lock is not None and lock.owner is not None:
            bootstrap._module_locks.pop(name, None)
            held = True
    if not held:
        return
    bootstrap._blocking_on.clear()
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if getattr(spec, "_initializing", False):
            sys.modules.pop(name, None)


# Locks of modules that a thread which is not here may hold, and that nobody else
# puts in order after a fork.
_LOCKS = (
    ("_strptime", "_cache_lock"),
    ("asyncio.events", "_lock"),
    ("tempfile", "_once_lock"),
)


def _unlock(lock):
    if hasattr(lock, "_at_fork_reinit"):
        lock._at_fork_reinit()


def _reseed():
    # `numpy.random` would import it, where numpy does that when it is asked for.
    random = sys.modules.get("numpy.random")
    if random is None:
        return
    try:
        _unlock(random.mtrand._rand._bit_generator.lock)
        random.seed()
    except Exception as error:
        print(f"numpy.random has the numbers of the session: {words(error)}", file=sys.stderr)


def unlock_generators(namespace):
    """Generators of numpy's that a thread which is not here was drawing from."""
    module = sys.modules.get("numpy.random")
    if module is None:
        return
    for value in list(namespace.values()):
        kind = type(value)
        if kind is module.Generator:
            _unlock(value.bit_generator.lock)
        elif kind is module.RandomState:
            _unlock(value._bit_generator.lock)


def multiply():
    """Use what a thread that is not here may have locked for good: whoever waits
    for this process then sees that it does not answer."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "ones"):
        square = numpy.ones((96, 96))
        square @ square
