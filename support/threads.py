"""OpenMP threads that share their cores: they spin while cores are free and sleep while others need
them.

An update is a thousand parallel regions of a tenth of a millisecond. Sleeping threads wake up too
late for the next region; spinning threads hold a core that the thread they wait for may need. A
fixed spin time does not do: beside one busy process, an update on two threads reaches 0.24 of its
fair share of the cores with GOMP_SPINCOUNT=20000 and 0.53 with 4000 (docs/speed.md). So libgomp,
which torch brings on Linux, is set to spin for 0.2 ms, and `share_cores` stops the spinning while
threads of this process wait for a core (0.90 of the fair share). The division of work, and so every
result, stays the same.

Import this module before torch: OpenMP reads its settings once, when torch loads. Settings of the
user stay. A script also prints its first line here, before the imports that take seconds.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from pathlib import Path

from support.first_line import print_first_line

SPINS = '20000'  # of libgomp, 0.2 ms: longer than the gaps inside an update
CROWDED = 0.3  # seconds per second that all threads of this process wait for a core, above which spinning stops
CALM = 0.15  # the same, below which spinning resumes
INTERVAL = 0.25  # seconds between two measurements

_is_ours = 'OMP_WAIT_POLICY' not in os.environ and os.environ.setdefault('GOMP_SPINCOUNT', SPINS) == SPINS
if _is_ours:
    os.environ.setdefault('KMP_BLOCKTIME', '0')  # LLVM's and Intel's OpenMP, on other systems: sleep at once
_watcher = None
print_first_line()


def share_cores():
    """Stop the spinning of OpenMP threads whenever cores are crowded, from now on; once per
    process.

    Nothing happens where waiting cannot be measured (other systems than Linux), with another OpenMP
    than libgomp, or if the user chose how threads wait.
    """
    global _watcher
    if _watcher is None and _is_ours and waiting_time() is not None:
        _watcher = threading.Thread(target=_watch, name='share_cores', daemon=True)
        _watcher.start()


def cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def waiting_time():
    """Return the seconds that all threads of this process have waited for a core; None if the
    system has no count."""
    if not Path('/proc/self/schedstat').exists():
        return None

    nanoseconds = 0
    for task in Path('/proc/self/task').iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # the thread ended meanwhile
            nanoseconds += int((task / 'schedstat').read_text().split()[1])
    return nanoseconds / 1e9


def _watch():
    """Measure the waiting time at intervals, and suppress spinning while it is long."""
    suppressor = None
    last_waiting = waiting_time()
    last_time = time.perf_counter()
    while True:
        time.sleep(INTERVAL)

        # waiting per second since the last measurement
        waiting = waiting_time()
        now = time.perf_counter()
        share = (waiting - last_waiting) / (now - last_time)
        last_waiting = waiting
        last_time = now

        if suppressor is None and share > CROWDED and (gomp := _libgomp()):
            suppressor = SpinSuppressor(gomp, sys.modules['torch'].get_num_threads())
        elif suppressor is not None and share < CALM:
            suppressor.end()
            suppressor = None


def _libgomp():
    """Return the libgomp that torch has loaded, or None."""
    torch = sys.modules.get('torch')
    if not hasattr(torch, 'get_num_threads'):  # not imported, or only in part
        return None
    folder = str(Path(torch.__file__).resolve().parent)
    for line in Path('/proc/self/maps').read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith(folder) and 'libgomp' in path:
            return ctypes.CDLL(path)
    return None


class SpinSuppressor:
    """While it exists, libgomp has more threads than cores, and spins for a microsecond only in
    that case (libgomp's manual, GOMP_SPINCOUNT). The surplus threads belong to a thread of their
    own and sleep."""

    def __init__(self, gomp, used_threads):
        self.gomp = gomp
        self.size = cores() - used_threads + 2  # libgomp counts one of these already
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._hold, name='spin suppressor', daemon=True)
        self.thread.start()

    def _hold(self):
        # a parallel region without work: any C function will do
        self.gomp.GOMP_parallel(self.gomp.omp_get_thread_num, None, ctypes.c_uint(max(self.size, 2)), ctypes.c_uint(0))
        self.ended.wait()

    def end(self):
        """Let libgomp spin again: it ends a thread's team with the thread."""
        self.ended.set()
        self.thread.join()
