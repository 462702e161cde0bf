"""Files that are never half-written, and checkpoints that run no code when they are read."""

import contextlib
import os
import time
import warnings
from pathlib import Path

import torch

CHECKPOINT_FORMAT = 5
REQUIRED = {'offline': ('agent', 'data'), 'online': ('agent', 'dataset')}


def write_atomic(path, write):
    """Call write(file) on a temporary binary file beside `path`, flush it to disk, then put it in place: `path` is
    always whole, the old content or the new. Raises OSError that names `path` where the disk is full or the like."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = ', its last good version is kept' if path.exists() else ''
            raise OSError(f'{path} cannot be written ({error.strerror or error}){kept}; free some space or mend the '
                          'folder, then go on with --resume') from error
        raise


def remove_leftovers(folder):
    """Delete the temporary files of processes that were killed while writing."""
    for path in Path(folder).glob('*.tmp*'):
        pid = path.name.rpartition('.tmp')[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not _may_be_writing(int(pid), path)):
            path.unlink(missing_ok=True)


def _may_be_writing(pid, path):
    if os.name == 'nt':  # there, os.kill(pid, 0) would end the process; nothing takes longer to write than this
        return time.time() - path.stat().st_mtime < 600
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def save_checkpoint(path, content):
    """Write a dict of tensors and builtins that `load_checkpoint` can read without running any code."""
    checkpoint = {'format': CHECKPOINT_FORMAT, **content}
    write_atomic(path, lambda file: _torch_save(checkpoint, file))


def _torch_save(checkpoint, file):
    """torch.save straight into a file, without a copy of everything in memory. torch turns an error of the file into
    one of its own that does not say what was wrong: the file's is raised instead."""
    errors = []

    class Remembering:
        def write(self, data):
            try:
                return file.write(data)
            except OSError as error:
                errors.append(error)
                raise

        def flush(self):
            file.flush()

    try:
        torch.save(checkpoint, Remembering())
    except RuntimeError as error:
        if errors:
            raise errors[0] from error
        raise
    if errors:
        raise errors[0]


def load_checkpoint(path, kind=None):
    """-> the saved dict, on the CPU. Raises FileNotFoundError, or ValueError that names what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about files that are refused anyway
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds here; all mean that this file cannot be used
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{path} is not a readable OPSO checkpoint ({reason})') from error
    if not isinstance(content, dict) or content.get('format') != CHECKPOINT_FORMAT:
        found = content.get('format') if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path} has checkpoint format {found}, this code reads {CHECKPOINT_FORMAT}: train again, or '
                         'use the version of OPSO that wrote it')
    if kind and content.get('kind') != kind:
        raise ValueError(f"{path} is an {content.get('kind')} checkpoint, an {kind} one is needed")
    if missing := [name for name in REQUIRED.get(kind, ()) if name not in content]:
        raise ValueError(f'{path} is not a whole checkpoint: {", ".join(missing)} missing')
    return content


@contextlib.contextmanager
def prefix_errors(path):
    """Puts the name of a file before what a ValueError inside says about its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
