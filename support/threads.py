"""How the threads of OpenMP share cores with other jobs. To be imported before torch, which reads GOMP_SPINCOUNT once,
when it loads.

Between two parallel pieces of work an idle thread can spin, which keeps its core, or sleep, which costs time to wake
up. Spinning without end makes an update beside another job several times slower, since the job holds the core that a
waiting thread needs; sleeping at once loses the second core altogether. A short spin keeps it, and where cores are busy
when a program starts, it leaves them alone (`free_cores`): `python scripts/benchmark.py --only threads`.
"""

import os
import time

os.environ.setdefault('GOMP_SPINCOUNT', '2000')  # libgomp, what torch brings on Linux; others do not read it


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def free_cores(seconds=0.1):
    """How many of `cores` had nothing to do in the next `seconds`, at least 1: threads beyond that would only wait
    for each other. Where the user chose a number (OMP_NUM_THREADS), or the system does not tell (not Linux), all of
    them."""
    if 'OMP_NUM_THREADS' in os.environ:
        return cores()

    try:
        before = _busy_ticks()
        time.sleep(seconds)
        after = _busy_ticks()
    except OSError:
        return cores()

    elapsed = seconds * os.sysconf('SC_CLK_TCK')
    mine = os.sched_getaffinity(0)
    busy = sum((after[core] - before[core]) / elapsed > 0.5 for core in mine if core in before)
    return max(1, len(mine) - busy)


def _busy_ticks():
    """Of each core, clock ticks that it spent at work since the system started."""
    ticks = {}
    with open('/proc/stat', encoding='utf-8') as file:
        for line in file:
            name, *fields = line.split()
            if name.startswith('cpu') and name != 'cpu':
                user, nice, system = (int(field) for field in fields[:3])
                ticks[int(name[3:])] = user + nice + system
    return ticks
