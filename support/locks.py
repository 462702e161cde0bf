"""A folder belongs to one process at a time.

The operating system's file locks hold it (through filelock), so that it is free again when its process dies, however
it dies. A file beside the lock names the owner, for the message to the next process that asks.
"""

import contextlib
import json
import os
import socket
import tempfile
import time
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = '.lock'  # stays in the folder when nobody holds it: deleting a lock file that others may open breaks the lock
OWNER = 'run.lock'  # who holds it, as JSON; exists while a run is in progress, and after a run that was killed


def lock_owner(folder):
    """-> dict(pid, host, since) of the process that holds `folder`, or None if it is free."""
    folder = Path(folder)
    if not (folder / LOCK).exists():
        return None

    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return _read_owner(folder)


@contextlib.contextmanager
def run_lock(folder):
    """Hold `folder` for this process, creating it if it is missing. Raises ValueError that names the process which
    holds it already.

    Folders created here are removed at the end if nothing was written into them.
    """
    folder = Path(folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        owner = _read_owner(folder)
        raise ValueError(f"{folder} is in use by process {owner['pid']} on {owner['host']} since {owner['since']} "
                         f'({OWNER}): wait for it, or name another --save_dir') from None

    try:
        _write_owner(folder)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # rmdir refuses a folder that is not empty: the usual case
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            for path in created:
                path.rmdir()


@contextlib.contextmanager
def file_lock(path, waiting):
    """Only one process of this user and machine at a time creates the file `path`; the others call waiting() and then
    wait. The lock file lies in the folder for temporary files, so that nothing is left beside `path`."""
    user = os.getuid() if hasattr(os, 'getuid') else 0
    path_hash = zlib.crc32(str(Path(path).resolve()).encode())
    lock = FileLock(Path(tempfile.gettempdir(), f'opso-{user}-{path_hash:08x}.lock'), timeout=0)

    try:
        lock.acquire()
    except Timeout:
        waiting()
        lock.acquire(timeout=-1)

    try:
        yield
    finally:
        lock.release()


def _write_owner(folder):
    owner = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.strftime('%Y-%m-%d %H:%M:%S')}
    draft = folder / f'{OWNER}.tmp{os.getpid()}'
    draft.write_text(json.dumps(owner), encoding='utf-8')
    os.replace(draft, folder / OWNER)


def _read_owner(folder):
    """-> dict(pid, host, since). An owner takes the lock a moment before it writes down who it is, hence the retries; a
    killed one may have left anything in the file."""
    unknown = {'pid': '(unknown)', 'host': 'this or another machine', 'since': 'a moment ago'}

    for _ in range(20):
        try:
            owner = json.loads((folder / OWNER).read_text(encoding='utf-8'))
            return unknown | {name: owner[name] for name in unknown}
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.01)

    return unknown
