"""A folder belongs to one process at a time: a lock file that names its owner and is taken over when that is gone."""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

LOCK = 'run.lock'


def process_alive(pid):
    """Does a process with this number run on this machine?"""
    if sys.platform == 'win32':  # there, os.kill(pid, 0) sends a Ctrl-C
        import ctypes
        query_limited_information, still_active = 0x1000, 259
        kernel, code = ctypes.windll.kernel32, ctypes.c_ulong()
        handle = kernel.OpenProcess(query_limited_information, False, pid)
        if not handle:
            return False
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == still_active
    if pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return _birth(pid) != 'zombie'


def _birth(pid):
    """When a process was born, in a form that only it has; '' where the system does not tell (not Linux)."""
    try:
        state, *fields = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()
    except OSError:
        return ''
    return 'zombie' if state == 'Z' else f'{boot} {fields[18]}'


def lock_owner(path):
    """-> dict(pid, host, since, birth) of the process that holds a lock file, or None: no file, or its process is
    gone. A process of another machine counts as there."""
    try:
        owner = json.loads(path.read_text(encoding='utf-8'))
        pid, host, birth = int(owner['pid']), owner['host'], owner['birth']
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not filled: killed after creating it
        return None
    gone = host == socket.gethostname() and (not process_alive(pid) or birth != _birth(pid))
    return None if gone else owner


@contextlib.contextmanager
def run_lock(folder):
    """Hold `folder` (made if it is missing) for this process. Raises ValueError that names a process which has it.

    A folder that is still empty in the end goes again.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _acquire(folder)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: the usual case
            for path in made:
                path.rmdir()


def _acquire(folder):
    path = folder / LOCK
    mine = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.strftime('%Y-%m-%d %H:%M:%S'),
            'birth': _birth(os.getpid())}
    for _ in range(3):
        try:
            return _create(path, json.dumps(mine))
        except FileExistsError:
            _clear_stale(path)
    raise ValueError(f'{folder} is being taken by another process right now; name another --save_dir')


def _create(path, text):
    """Write `text` to a new file `path`, there with all of it or not at all; FileExistsError if there is one."""
    draft = path.with_name(f'{path.name}.tmp{os.getpid()}')
    draft.write_text(text, encoding='utf-8')
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, 'x', encoding='utf-8') as file:
            file.write(text)
    finally:
        draft.unlink()


def _clear_stale(path):
    """Remove the lock of a process that is gone; ValueError if its owner lives."""
    _refuse(path)
    # by way of another name: of two processes that find the same stale lock, none may delete the other's new one
    aside = path.with_name(f'{path.name}.tmp{os.getpid()}')
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
        if lock_owner(aside):
            os.replace(aside, path)
            _refuse(path)
        aside.unlink()


def _refuse(lock):
    if owner := lock_owner(lock):
        raise ValueError(f"{lock.parent} is in use by process {owner['pid']} on {owner['host']} since "
                         f"{owner['since']}: wait for it, name another --save_dir or, if it is certainly gone, "
                         f'delete {lock}')
