"""A run of a trainer: its folder and lock, the signals that stop it, its checkpoints.

Both trainers work inside `open_run`, so that a run ends in one of three ways: finished; stopped by
a signal, saved, and with the command that resumes it on the screen; or with one error line and the
last good checkpoint.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from support.devices import random_state, restore_random_state
from support.files import load_checkpoint, remove_leftovers, save_checkpoint, write_atomic
from support.flags import flag
from support.locks import lock_owner, run_lock
from support.metrics import MetricsLog
from support.trackers import INSTALL, check_trackers, open_trackers

ROOT = Path(__file__).resolve().parents[1]
# the flags that may change when a run is resumed
FREE_FLAGS = (
    'num_updates', 'num_epochs', 'max_steps', 'max_episodes',  # budgets may be raised
    'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint',  # files may move: their contents are compared
    'device', 'mamba_backend', 'save_dir', 'resume',
    'maze_figures', 'video', 'tensorboard', 'wandb',
)


@dataclasses.dataclass
class RunConfig:
    """data, files and machine of a run"""
    dataset: str = flag('antmaze-medium-navigate-v0', 'OGBench dataset name; it names the environment too')
    env: str = flag('', 'your own environment instead, module:factory; with --dataset_path (docs/own_robot.md)')
    dataset_path: str = flag('', 'npz file to use instead of searching by name')
    data_dir: str = flag('datasets', 'folder of dataset files; downloads go there')
    dataset_url: str = flag('', 'base URL of a mirror to download from')
    max_trajectories: int = flag(0, 'use this many trajectories; 0 uses all', least=0)
    seed: int = flag(0, 'seed of everything random', least=0, most=2**32 - 1)
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    tensorboard: bool = flag(False, 'log to TensorBoard as well; needs its package')
    wandb: bool = flag(False, 'log to Weights & Biases as well; needs its package')
    save_dir: str = flag('', 'run folder; default <half>_checkpoints/<dataset>/seed<seed>, a new one each time')
    resume: bool = flag(False, 'continue the newest run of this dataset and seed (or the one in --save_dir)')

    @property
    def name(self):
        """What names the environment, and runs in it: --env, or else the dataset."""
        return self.env or self.dataset


# -------------------------------------------------------------------------------------------------- folders
def runs_of(root, name):
    """-> Path of the folder of all runs of a dataset or own environment."""
    return Path(root) / name.replace(':', '.')  # Windows has no : in names


def new_run_dir(root, name, seed, save_dir='', resume=False):
    """-> Path of a run's folder: `save_dir`, or else <root>/<name>/seed<seed>.

    Where the latter holds a run already, -run2, -run3, … is appended, so that no command overwrites
    another's results; with `resume`, it is the newest of these. Raises ValueError if `save_dir`
    holds a run already and is not to be resumed.
    """
    if save_dir:
        if not resume and (Path(save_dir) / 'config.json').exists():
            raise ValueError(f'{save_dir} holds a run already: add --resume, or name another --save_dir')
        return Path(save_dir)

    base = runs_of(root, name) / f'seed{seed}'
    newest = base
    candidate = base
    number = 1
    while (candidate / 'config.json').exists() or (not resume and lock_owner(candidate)):
        newest = candidate
        number += 1
        candidate = base.with_name(f'{base.name}-run{number}')
    return newest if resume else candidate


def check_unchanged(saved, now):
    """Raise ValueError if the flags of a resumed run (`now`, a dict) differ from the `saved` ones,
    naming those that do; `FREE_FLAGS` may differ."""
    changed = [
        f'--{name} was {value}, is {now.get(name)}'
        for name, value in saved.items()
        if name not in FREE_FLAGS and now.get(name) != value
    ]
    if changed:
        raise ValueError('--resume needs the flags that the run was started with: ' + '; '.join(changed))


def write_config(folder, *configs, **extra):
    """Write config.json: the command line, every flag of the dataclasses `configs`, package
    versions, the git commit (None outside a clone) and `extra`."""
    versions = {'python': platform.python_version()}
    for name in ('torch', 'numpy', 'ogbench', 'mujoco', 'gymnasium', 'mamba-ssm'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None

    commit = None
    if (ROOT / '.git').exists():
        command = ['git', '-C', str(ROOT), 'rev-parse', 'HEAD']
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()

    content = {
        'argv': sys.argv,
        'flags': _as_flags(configs),
        'versions': versions,
        'git_commit': commit,
        **extra,
    }
    write_atomic(Path(folder) / 'config.json', lambda file: file.write(json.dumps(content, indent=2).encode()))


def _as_flags(configs):
    """-> {name: value} of the fields of all dataclasses together; of a name in two of them, the
    later one counts."""
    flags = {}
    for config in configs:
        flags |= dataclasses.asdict(config)
    return flags


# ----------------------------------------------------------------------------------------------------- runs
class Stopped(BaseException):
    """The user asked to stop, and the work in progress has been finished or dropped. Like
    KeyboardInterrupt this is not an Exception, so that no `except Exception` swallows it."""


class Stop:
    """Context that catches Ctrl-C (SIGINT) and SIGTERM: after one of them, `check` raises `Stopped`
    when the training next calls it. Inside `interruptible` the signal itself does. A second signal
    ends the process on the spot."""

    def __init__(self):
        self.signal = None  # number of the one that came
        self.now = False
        self.before = {}  # signal number -> the handler to restore

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in the main thread only
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.signal:
            os._exit(128 + number)

        self.signal = number
        if self.now:
            raise Stopped
        os.write(2, b'\nstopping after this update; once more to stop at once\n')

    def check(self):
        """Raise `Stopped` if a signal came."""
        if self.signal:
            raise Stopped

    @contextlib.contextmanager
    def interruptible(self):
        """Context for work that is not worth finishing: a signal raises `Stopped` right there."""
        self.now = True
        try:
            self.check()
            yield
        finally:
            self.now = False


@contextlib.contextmanager
def open_run(kind, script, *configs):
    """Context of one training -> `Run`.

    kind: 'offline', 'online' or 'labeling'; script: path of what runs; configs: dataclasses of its
    flags, a `RunConfig` first.

    The folder is locked, signals are caught, and `Stopped` ends the program with exit code 130 or
    143, after printing the command that resumes the run. With --resume, `run.saved` is the
    checkpoint to continue from, or None where the run was killed before it saved one.

    Raises ValueError if another process works in the folder or the flags contradict the checkpoint,
    FileNotFoundError if there is no run to resume.
    """
    config = configs[0]
    check_trackers(name for name in INSTALL if getattr(config, name))
    folder = new_run_dir(f'{kind}_checkpoints', config.name, config.seed, config.save_dir, config.resume).resolve()
    if config.resume and not (folder / 'last.pth').exists() and not (folder / 'config.json').exists():
        raise FileNotFoundError(f'--resume: no run in {folder}, there is neither last.pth nor config.json')

    with Stop() as stop, run_lock(folder):
        try:
            remove_leftovers(folder)
            yield Run(kind, script, folder, configs, stop)
        except Stopped:
            if (folder / 'config.json').exists():
                print(f'stopped; go on with:\n{resume_command(script, folder, configs)}')
            else:
                print('stopped before the run began')
            sys.exit(128 + stop.signal)


class Run:
    """The folder of a training and what belongs in it; made by `open_run`."""

    def __init__(self, kind, script, folder, configs, stop):
        self.kind = kind
        self.script = script
        self.folder = folder
        self.configs = configs
        self.stop = stop
        self.flags = _as_flags(configs)

        self.saved = None
        if self.flags['resume'] and (folder / 'last.pth').exists():
            self.saved = load_checkpoint(folder / 'last.pth', kind)
            if 'flags' not in self.saved:
                raise ValueError(f'{folder / "last.pth"} is of an older version that could not resume exactly; it can '
                                 'be used and evaluated, but not continued')
            check_unchanged(self.saved['flags'], self.flags)

    def start_logging(self, csv_name, step, data, **extra):
        """Write config.json and open the CSV, rows after `step` dropped -> MetricsLog.

        `data` describes what is trained on; ValueError if that of a resumed run is another. A
        resumed run also restores the random generators and the number of threads, because the order
        of sums depends on the latter.
        """
        if self.saved:
            fingerprint = self.saved['fingerprint']
            if fingerprint != data:
                raise ValueError(f'--resume needs the data that the run was started with: {fingerprint}; '
                                 f'this is {data}')
            restore_random_state(self.saved['random'])
            if 'OMP_NUM_THREADS' not in os.environ:
                torch.set_num_threads(self.saved['threads'])

        self.data = data
        write_config(self.folder, *self.configs, **extra)
        self.log = MetricsLog(self.folder / csv_name, step)

        names = [name for name in INSTALL if self.flags[name]]
        title = f'{self.kind} {self.folder.parent.name} {self.folder.name}'
        self.log.trackers = open_trackers(names, self.folder, title, self.flags, step)

        if self.saved and len(self.log.rows) != self.saved['rows']:
            print(f'warning: {self.log.path} has {len(self.log.rows)} of the {self.saved["rows"]} rows '
                  'that were logged before', file=sys.stderr)
        return self.log

    def save(self, content, name='last.pth'):
        """Write the dict `content` as a checkpoint, together with all that --resume compares and
        restores."""
        save_checkpoint(self.folder / name, {
            'kind': self.kind,
            'flags': self.flags,
            'fingerprint': self.data,
            'rows': len(self.log.rows),
            'random': random_state(),
            'threads': torch.get_num_threads(),
            **content,
        })

    def report_nonfinite(self, step, info, rows):
        """Stop a run whose losses or gradients are not finite.

        Args:
            info: {name: float} of the update. rows: {name: int array}, where the batch lies in the
                data; written to a file.

        Raises:
            FloatingPointError: that names the term, the update, that file and the checkpoint to go
                back to.
        """
        bad = [name for name, value in info.items() if not math.isfinite(float(value))]
        wrong = next((name for name in bad if name.endswith('_loss')), bad[0])  # the terms come before their total

        path = self.folder / f'nonfinite_update{step}.npz'
        write_atomic(path, lambda file: np.savez(file, step=step, **rows))
        last = self.folder / 'last.pth'
        good = last if last.exists() else 'none yet'
        raise FloatingPointError(
            f'{wrong} is {float(info[wrong])} at update {step}; rows of its batch: {path}; '
            f'last good checkpoint: {good}. Try a smaller --lr or --grad_clip')


def resume_command(script, folder, configs):
    """-> the command line, quoted for the shell, that continues the run in `folder` from the
    working directory."""
    flags = []
    for config in configs:
        for field in dataclasses.fields(config):
            # the first config that has the field, as some share one
            value = next(getattr(other, field.name) for other in configs if hasattr(other, field.name))
            if value == field.default or field.name in ('save_dir', 'resume'):
                continue
            if isinstance(value, bool):
                flags.append(f'--{field.name}' if value else f'--no-{field.name}')
            else:
                flags += [f'--{field.name}', str(value)]

    words = ['python', _from_here(script), *flags, '--save_dir', _from_here(folder), '--resume']
    return subprocess.list2cmdline(words) if os.name == 'nt' else shlex.join(words)


def _from_here(path):
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive of Windows
        return str(path)
