"""What a run leaves behind: its folder and lock, the signals that stop it, its checkpoints.

Both trainers work inside `open_run`, so that a run ends in one of these ways only: finished; stopped by a signal,
saved and with the command that resumes it on the screen; or with one error line and the last good checkpoint.
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
FREE_FLAGS = ('num_updates', 'num_epochs', 'max_steps', 'max_episodes',  # budgets may be raised
              'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint',  # files may move: contents are compared
              'device', 'mamba_backend', 'save_dir', 'resume',
              'maze_figures', 'video', 'tensorboard', 'wandb')


@dataclasses.dataclass
class RunConfig:
    """data, files and machine of a run"""
    dataset: str = flag('antmaze-medium-navigate-v0', 'OGBench dataset name; it names the environment too')
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


# -------------------------------------------------------------------------------------------------- folders
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
    while (following / 'config.json').exists() or not resume and lock_owner(following):
        folder, number = following, number + 1
        following = base.with_name(f'{base.name}-run{number}')
    return folder if resume else following


def check_unchanged(saved, now):
    """Raise ValueError if the flags of a resumed run (a dict) differ from `saved` ones, naming them; only budgets,
    places of files and the device are free to change."""
    changed = [f'--{name} was {value}, is {now.get(name)}' for name, value in saved.items()
               if name not in FREE_FLAGS and now.get(name) != value]
    if changed:
        raise ValueError('--resume needs the flags that the run was started with: ' + '; '.join(changed))


def write_config(folder, *configs, **extra):
    """config.json: every flag, the command line, package versions and the git commit."""
    versions = {'python': platform.python_version()}
    for name in ('torch', 'numpy', 'ogbench', 'mujoco', 'gymnasium', 'mamba-ssm'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    git = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'],
                         capture_output=True, text=True) if (ROOT / '.git').exists() else None
    content = {'argv': sys.argv, 'flags': {k: v for c in configs for k, v in dataclasses.asdict(c).items()},
               'versions': versions, 'git_commit': git.stdout.strip() if git else None, **extra}
    write_atomic(Path(folder) / 'config.json', lambda file: file.write(json.dumps(content, indent=2).encode()))


# ----------------------------------------------------------------------------------------------------- runs
class Stopped(BaseException):
    """The user asked to stop, and what was in progress is finished or dropped. Like KeyboardInterrupt it is not an
    Exception: nothing that handles errors may take it for one."""


class Stop:
    """Ctrl-C (SIGINT) and SIGTERM inside this context: `check` raises `Stopped` at the next good moment, and so does
    the signal itself inside `at_once`. A second signal ends the process on the spot."""

    def __init__(self):
        self.signal, self.now, self.before = None, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # python allows no handlers elsewhere
            self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
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
    def at_once(self):
        """For work that is not worth finishing."""
        self.now = True
        try:
            self.check()
            yield
        finally:
            self.now = False


@contextlib.contextmanager
def open_run(kind, script, *configs):
    """Context of one training: -> `Run`. The folder is locked, signals are caught, and `Stopped` ends the program
    with the command that goes on and exit code 130 or 143. With --resume, `run.saved` is the checkpoint to go on from,
    or None where the run was killed before it saved one.

    Raises ValueError if another process works in the folder or the flags contradict the checkpoint.
    """
    first = configs[0]
    check_trackers(name for name in INSTALL if getattr(first, name))
    folder = new_run_dir(f'{kind}_checkpoints', first.dataset, first.seed, first.save_dir, first.resume).resolve()
    if first.resume and not (folder / 'last.pth').exists() and not (folder / 'config.json').exists():
        raise FileNotFoundError(f'--resume: no run in {folder}, there is neither last.pth nor config.json')
    with run_lock(folder), Stop() as stop:
        try:
            remove_leftovers(folder)
            yield Run(kind, script, folder, configs, stop)
        except Stopped:
            started = (folder / 'config.json').exists()
            print(f'stopped; go on with:\n{resume_command(script, folder, configs)}' if started else
                  'stopped before the run began')
            sys.exit(128 + stop.signal)


class Run:
    """A training's folder and what belongs into it; see `open_run`."""

    def __init__(self, kind, script, folder, configs, stop):
        self.kind, self.script, self.folder, self.configs, self.stop = kind, script, folder, configs, stop
        self.flags = {name: value for config in configs for name, value in dataclasses.asdict(config).items()}
        self.saved = None
        if self.flags['resume'] and (folder / 'last.pth').exists():
            self.saved = load_checkpoint(folder / 'last.pth', kind)
            if 'flags' not in self.saved:
                raise ValueError(f'{folder / "last.pth"} is of an older version that could not resume exactly; it can '
                                 'be used and evaluated, but not continued')
            check_unchanged(self.saved['flags'], self.flags)

    def start_logging(self, csv_name, step, data, **extra):
        """Write config.json and open the CSV, rows after `step` dropped -> MetricsLog. `data` describes what is
        trained on; a resumed run must have the same. All random generators go on where they were saved, with as many
        threads, on which the order of sums depends."""
        if self.saved:
            if self.saved['fingerprint'] != data:
                raise ValueError(f'--resume needs the data that the run was started with: {self.saved["fingerprint"]}; '
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
            print(f'warning: {self.log.path} has {len(self.log.rows)} of the {self.saved["rows"]} rows that were '
                  'logged before', file=sys.stderr)
        return self.log

    def save(self, content, name='last.pth'):
        """Write a checkpoint with all that `--resume` compares and restores."""
        save_checkpoint(self.folder / name, {'kind': self.kind, 'flags': self.flags, 'fingerprint': self.data,
                                             'rows': len(self.log.rows), 'random': random_state(),
                                             'threads': torch.get_num_threads(), **content})

    def check_finite(self, step, info, rows):
        """Stop a run whose numbers went wrong: raises FloatingPointError that names the term, the update, the file with
        the batch's `rows` ({name: int array}) and the checkpoint to go back to."""
        if math.isfinite(float(info['total_loss'] + info['grad_norm'])):
            return

        bad = [name for name, value in info.items() if not math.isfinite(float(value))]
        wrong = next((name for name in bad if name.endswith('_loss')), bad[0])  # the terms come before their total
        path = self.folder / f'nonfinite_update{step}.npz'
        write_atomic(path, lambda file: np.savez(file, step=step, **rows))
        last = self.folder / 'last.pth'
        raise FloatingPointError(
            f'{wrong} is {float(info[wrong])} at update {step}; rows of its batch: {path}; last good checkpoint: '
            f'{last if last.exists() else "none yet"}. Try a smaller --lr or --grad_clip')


def resume_command(script, folder, configs):
    """The command line that continues the run in `folder`, from here."""
    flags = []
    for field in (field for config in configs for field in dataclasses.fields(config)):
        value = next(getattr(config, field.name) for config in configs if hasattr(config, field.name))
        if value != field.default and field.name not in ('save_dir', 'resume'):
            on_off = f'--{"" if value else "no-"}{field.name}'
            flags += [on_off] if isinstance(value, bool) else [f'--{field.name}', str(value)]
    words = ['python', _from_here(script), *flags, '--save_dir', _from_here(folder), '--resume']
    return subprocess.list2cmdline(words) if os.name == 'nt' else shlex.join(words)


def _from_here(path):
    try:
        return os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)
