"""Ctrl-C and SIGTERM: a training that is told to stop finishes its step and saves."""

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress

NOTICE = b"\nfinishing this step and saving it; Ctrl-C again stops at once\n"


class Stopped(KeyboardInterrupt):
    """A signal has ended something; nothing is half done.

    Attributes:
        signal: its number
    """

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.signal = number


class Stop:
    """Inside `with Stop() as stop`, signals wait to be asked for.

    Ctrl-C (SIGINT) and SIGTERM are kept in `stop.signal` until the training has come to a good
    place. A second Ctrl-C is KeyboardInterrupt at once. A second SIGTERM is not: where a whole
    group of processes is told to end, a launcher among them often passes its own on.

    Signals that are ignored, as under nohup or in a shell's background job, stay ignored. Outside
    the main thread, which alone is told of signals, this does nothing.
    """

    def __init__(self):
        self.signal: int | None = None
        self.interrupted = False
        self.before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):  # None: not installed by Python
                    self.before[number] = handler
                    signal.signal(number, self._hear)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            if sys.__stderr__ is not None:
                with suppress(OSError):  # and no `print`, which may be what was interrupted
                    os.write(sys.__stderr__.fileno(), NOTICE)
        self.signal = number


@contextmanager
def terminable():
    """Inside, SIGTERM raises Stopped, so that files are closed, and `finally` is heeded."""

    def terminate(number, _):
        raise Stopped(number, "terminated")

    usual = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
