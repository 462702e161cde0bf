"""A folder belongs to one process at a time. The system's own file locks hold it (filelock), so that it is free again
when a process dies, however it dies; a file beside the lock names the owner, for the message to the next one."""

import contextlib
import json
import os
import socket
import tempfile
import time
import zlib
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = '.lock'  # held by the system; stays when it is free, since deleting a lock file would break the lock
OWNER = 'run.lock'  # who holds it, as JSON; there while a run is in progress, or after it was killed


def lock_owner(folder):
    """-> dict(pid, host, since) of the process that holds `folder`, or None."""
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
    """Hold `folder` (made if it is missing) for this process. Raises ValueError that names a process which has it.

    A folder that is still empty in the end goes again.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
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
        with contextlib.suppress(OSError):  # not empty: the usual case
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def file_lock(path, waiting):
    """Only one process of this user and machine at a time makes the file `path`; the others wait, after calling
    waiting(). The lock lies among the temporary files, so that nothing stays beside `path`."""
    user = os.getuid() if hasattr(os, 'getuid') else 0
    name = zlib.crc32(str(Path(path).resolve()).encode())
    lock = FileLock(Path(tempfile.gettempdir(), f'opso-{user}-{name:08x}.lock'), timeout=0)
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
    """The owner has the lock a moment before it has written who it is, and a killed one may have left anything."""
    unknown = {'pid': '(unknown)', 'host': 'this or another machine', 'since': 'a moment ago'}
    for _ in range(20):
        try:
            owner = json.loads((folder / OWNER).read_text(encoding='utf-8'))
            return unknown | {name: owner[name] for name in unknown}
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return unknown
