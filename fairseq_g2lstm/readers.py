"""Ends fairseq's threads that read batches ahead before the interpreter ends.

Where Python finds one within torch's C++ at its end, the process aborts, and a training that went
well seems to have failed.
"""

import atexit
import queue
import threading
import time
from contextlib import suppress

from fairseq.data.iterators import BackgroundConsumer

_PATIENCE = 10.0  # seconds for the batches in hand


@atexit.register
def _end_readers() -> None:
    readers = [thread for thread in threading.enumerate() if isinstance(thread, BackgroundConsumer)]
    for reader in readers:
        reader._max_len = 0  # the batch in hand is its last
    deadline = time.monotonic() + _PATIENCE
    while any(reader.is_alive() for reader in readers) and time.monotonic() < deadline:
        for reader in readers:
            with suppress(queue.Empty):  # it may be waiting for room
                reader._queue.get_nowait()
            reader.join(0.01)
