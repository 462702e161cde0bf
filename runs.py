"""What a run leaves behind: its folder, files that are never half-written, checkpoints, config and metrics."""

import csv
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

CHECKPOINT_FORMAT = 1


def write_atomic(path, write):
    """Call write(file) on a temporary binary file beside `path`, flush it to disk, then put it in place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(path, content):
    """Write a dict of tensors and builtins that `load_checkpoint` can read without running any code."""
    write_atomic(path, lambda file: torch.save({'format': CHECKPOINT_FORMAT, **content}, file))


def load_checkpoint(path, kind=None):
    """-> the saved dict, on the CPU. Raises FileNotFoundError, or ValueError that names what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds here; all mean that this file cannot be used
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{path} is not a readable OPSO checkpoint ({reason})') from error
    if not isinstance(content, dict) or content.get('format') != CHECKPOINT_FORMAT:
        found = content.get('format') if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path} has checkpoint format {found}, this code reads {CHECKPOINT_FORMAT}')
    if kind and content.get('kind') != kind:
        raise ValueError(f"{path} is an {content.get('kind')} checkpoint, an {kind} one is needed")
    return content


def new_run_dir(root, dataset, seed, save_dir='', resume=False):
    """The folder of a run: `save_dir`, or <root>/<dataset>/seed<seed>, with -run2, -run3, … where that holds
    a run already, so that no command overwrites another's results; with `resume`, the newest of them.

    Raises ValueError if `save_dir` holds a run already and is not to be resumed.
    """
    if save_dir:
        if not resume and (Path(save_dir) / 'config.json').exists():
            raise ValueError(f'{save_dir} holds a run already: add --resume, or name another --save_dir')
        return Path(save_dir)
    base, number = Path(root) / dataset / f'seed{seed}', 1
    folder = following = base
    while (following / 'config.json').exists():
        folder, number = following, number + 1
        following = base.with_name(f'{base.name}-run{number}')
    return folder if resume else following


def check_unchanged(saved, config):
    """Raise ValueError if a resumed run's saved flags (a dict) differ from those of `config`, naming them."""
    now = dataclasses.asdict(config)
    changed = [f'--{name} was {value}, is {now.get(name)}' for name, value in saved.items() if now.get(name) != value]
    if changed:
        raise ValueError('--resume needs the flags that the run was started with: ' + '; '.join(changed))


def write_config(folder, *configs, **extra):
    """config.json: every flag, the command line, package versions and the git commit."""
    packages = ('torch', 'numpy', 'ogbench', 'mujoco', 'gymnasium', 'mamba-ssm')
    versions = {'python': platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    git = subprocess.run(['git', '-C', str(Path(__file__).parent), 'rev-parse', 'HEAD'],
                         capture_output=True, text=True) if (Path(__file__).parent / '.git').exists() else None
    content = {'argv': sys.argv, 'flags': {k: v for c in configs for k, v in dataclasses.asdict(c).items()},
               'versions': versions, 'git_commit': git.stdout.strip() if git else None, **extra}
    write_atomic(Path(folder) / 'config.json', lambda file: file.write(json.dumps(content, indent=2).encode()))


class MetricsLog:
    """A CSV that takes new columns at any time. `start_step`: rows after it are dropped (a resumed run)."""

    def __init__(self, path, start_step=0):
        self.path, self.rows, self.columns = Path(path), [], ['step', 'time']
        if self.path.exists():
            self.rows = [row for row in read_csv(self.path) if row['step'] <= start_step]
            for row in self.rows:
                self._add_columns(row)
        self.begin = time.time() - max((row['time'] for row in self.rows), default=0.0)
        self._rewrite()

    def _add_columns(self, row):
        new = [name for name in row if name not in self.columns]
        self.columns += new
        return bool(new)

    def _rewrite(self):
        def write(file):
            lines = [','.join(self.columns), *(self._line(row) for row in self.rows)]
            file.write(('\n'.join(lines) + '\n').encode())
        write_atomic(self.path, write)

    def _line(self, row):
        return ','.join('' if row.get(name) is None else repr(row[name]) for name in self.columns)

    def log(self, step, metrics):
        """Add one row of numbers. The file is whole after every call."""
        row = {'step': int(step), 'time': round(time.time() - self.begin, 2),
               **{name: float(value) for name, value in metrics.items()}}
        self.rows.append(row)
        if self._add_columns(row):
            self._rewrite()
        else:
            with open(self.path, 'a') as file:
                file.write(self._line(row) + '\n')


def read_csv(path):
    """-> list of dicts of floats; empty cells are left out."""
    with open(path, newline='') as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
