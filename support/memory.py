"""The memory that this process can still use."""

import contextlib
from pathlib import Path


def available_memory():
    """Return bytes of memory and swap that can still be allocated; None if the system does not say."""
    limits = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = Path('/proc/meminfo').read_text().splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(':') for line in lines)}
        limits.append(1024 * (kilobytes['MemAvailable'] + kilobytes['SwapFree']))

    with contextlib.suppress(OSError, ValueError):  # a container has a limit of its own
        group = Path('/sys/fs/cgroup')
        used = int((group / 'memory.current').read_text())
        limits.append(int((group / 'memory.max').read_text()) - used)  # 'max' without a limit
    return min(limits, default=None)
