"""The first line of a command, before its imports: torch, MuJoCo, SciPy and matplotlib take 4 s to load, and several
times as long from a cold disk."""

import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELP = {'-h', '--help', '--help_all', '--help-all'}


def print_first_line():
    """Print the name of the running script of this repository to stderr, unless it is asked for its help."""
    name = running_script()
    if name and sys.stderr and not HELP & set(sys.argv[1:]):
        with contextlib.suppress(OSError):  # nothing reads stderr
            print(f'{name}: loading libraries', file=sys.stderr, flush=True)


def running_script():
    """Return the path in this repository of the script that runs; None for other programs, such as tests."""
    path = getattr(sys.modules['__main__'], '__file__', None)
    if not path or not Path(path).resolve().is_relative_to(ROOT):
        return None
    name = Path(path).resolve().relative_to(ROOT)
    return name.as_posix() if name.parts[0] == 'scripts' or len(name.parts) == 1 else None
