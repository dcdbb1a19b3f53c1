"""The session's event loop: top-level `await`, and tasks that go on between cells."""

import asyncio

_loop = None
_cell_task = None


def run(coroutine):
    """Run the coroutine of a cell until it ends; other tasks run meanwhile.

    Returns: the coroutine's value.
    Raises: whatever it raised; KeyboardInterrupt if it was interrupted.
    """
    global _loop, _cell_task
    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()
    asyncio.set_event_loop(_loop)
    task = _cell_task = _loop.create_task(coroutine)
    interrupted = False
    try:
        while True:
            try:
                return _loop.run_until_complete(task)
            except asyncio.CancelledError:
                if interrupted or getattr(task, "_pythond_interrupted", False):
                    raise KeyboardInterrupt from None
                raise
            except (KeyboardInterrupt, SystemExit):
                # Raised by the cell's own code it has ended the task. Raised
                # elsewhere, in another task or in the wait for events, the
                # cell still has to be ended.
                if task.done():
                    raise
                interrupted = True
                task.cancel()
    finally:
        _cell_task = None


def interrupt():
    """Decide what an interrupt does while a cell awaits. Called by the signal handler.

    Returns: True if KeyboardInterrupt is to be raised here and now.
    """
    task = _cell_task
    if task is None or task.done():
        return True
    if asyncio.current_task(_loop) is task:
        return True
    # The stack belongs to another task or to the loop: only the cell's task
    # may be hit.
    try:
        task._pythond_interrupted = True
    except AttributeError:
        return True
    task.cancel()
    _loop.call_soon_threadsafe(int)
    return False


def has_work():
    """True if tasks or callbacks wait for the loop to run."""
    if _loop is None or _loop.is_closed() or _loop.is_running():
        return False
    if getattr(_loop, "_ready", None) or getattr(_loop, "_scheduled", None):
        return True
    return bool(asyncio.all_tasks(_loop))


def serve(descriptors, longest):
    """Let tasks run until one of the descriptors can be read.

    Args: descriptors (list of int); longest (float or None), seconds after
        which it returns anyway.
    """
    asyncio.set_event_loop(_loop)
    watched = []
    timer = None
    try:
        for descriptor in descriptors:
            _loop.add_reader(descriptor, _loop.stop)
            watched.append(descriptor)
        if longest is not None:
            timer = _loop.call_later(longest, _loop.stop)
        _loop.run_forever()
    finally:
        if timer is not None:
            timer.cancel()
        for descriptor in watched:
            _loop.remove_reader(descriptor)
