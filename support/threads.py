"""OpenMP threads that share their cores: they wait spinning while the cores are free and asleep while others need them.

An update is a thousand parallel pieces of a tenth of a millisecond. Threads that sleep between two of them
(OMP_WAIT_POLICY=PASSIVE) wake up too late for the next, and two are no faster than one; two that spin are 1.5 times as
fast as one, but beside one other busy process the thread that is waited for is often the one without a core, and an
update takes ten times as long. So libgomp, which torch brings on Linux, is told to spin for a while, and `share_cores`
makes it stop as soon as this process's threads wait for a core. How work is divided, and so every result, stays as it
is.

To be imported before torch: OpenMP reads its settings once, when torch loads. A user's own settings stay as they are.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from pathlib import Path

SPINS = '20000'  # of libgomp, 0.2 ms: longer than the gaps inside an update
CROWDED = 0.3  # seconds per second that threads of this process wait for a core, all together
CALM = 0.15
INTERVAL = 0.25  # seconds between two looks

_chosen_here = 'OMP_WAIT_POLICY' not in os.environ and os.environ.setdefault('GOMP_SPINCOUNT', SPINS) == SPINS
if _chosen_here:
    os.environ.setdefault('KMP_BLOCKTIME', '0')  # LLVM's and Intel's OpenMP, on other systems: sleep at once
_watcher = None


def share_cores():
    """From now on, let this process's OpenMP threads sleep at once whenever the cores are crowded, and spin otherwise.
    Once per process. Does nothing where waiting cannot be measured (other systems than Linux), with another OpenMP
    than libgomp, or where the user chose how threads wait."""
    global _watcher
    if _watcher is None and _chosen_here and waited() is not None:
        _watcher = threading.Thread(target=_watch, name='share_cores', daemon=True)
        _watcher.start()


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def waited():
    """-> seconds that all threads of this process have spent ready to run without a core; None where nobody counts."""
    if not Path('/proc/self/schedstat').exists():
        return None

    nanoseconds = 0
    for task in Path('/proc/self/task').iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended while we read
            nanoseconds += int((task / 'schedstat').read_text().split()[1])
    return nanoseconds / 1e9


def _watch():
    crowd = None
    last_waited = waited()
    last_time = time.perf_counter()
    while True:
        time.sleep(INTERVAL)
        total_waited = waited()
        now = time.perf_counter()
        share = (total_waited - last_waited) / (now - last_time)
        last_waited = total_waited
        last_time = now

        if crowd is None and share > CROWDED and (gomp := _libgomp()):
            crowd = Crowd(gomp, sys.modules['torch'].get_num_threads())
        elif crowd is not None and share < CALM:
            crowd.leave()
            crowd = None


def _libgomp():
    """-> the libgomp that torch has loaded, or None."""
    torch = sys.modules.get('torch')
    if not hasattr(torch, 'get_num_threads'):  # not imported, or not yet to its end
        return None
    folder = str(Path(torch.__file__).resolve().parent)
    for line in Path('/proc/self/maps').read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith(folder) and 'libgomp' in path:
            return ctypes.CDLL(path)
    return None


class Crowd:
    """While it is there, libgomp has more threads than cores, and in that case it spins for a microsecond only
    (libgomp's manual, GOMP_SPINCOUNT). The threads beyond the cores belong to a thread of their own and sleep."""

    def __init__(self, gomp, used_threads):
        self.gomp = gomp
        self.size = cores() - used_threads + 2  # one of these is not new to libgomp
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._stay, name='crowd', daemon=True)
        self.thread.start()

    def _stay(self):
        # a parallel region without work: any C function will do
        self.gomp.GOMP_parallel(self.gomp.omp_get_thread_num, None, ctypes.c_uint(max(self.size, 2)), ctypes.c_uint(0))
        self.ended.wait()

    def leave(self):
        self.ended.set()  # libgomp ends a thread's team with the thread
        self.thread.join()
