"""A run of a trainer: its folder and lock, the signals that stop it, its checkpoints.

Both trainers work inside `open_run`. A run ends in one of three ways: it is finished; a signal stops it, and
it is saved and prints the command that resumes it; or it fails with one error line and keeps its last good
checkpoint.
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

from support.contents import Number, check_layout
from support.devices import random_state, restore_random_state
from support.files import (
    check_types,
    load_checkpoint,
    prefix_errors,
    remove_leftovers,
    save_checkpoint,
    write_atomic,
)
from support.flags import check_ranges, flag
from support.locks import lock_owner, run_lock
from support.metrics import MetricsLog, read_csv
from support.trackers import INSTALL, check_trackers, open_trackers

ROOT = Path(__file__).resolve().parents[1]
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOST_THREADS = 1024  # of torch; more exhaust the memory
GIT_SECONDS = 10  # after which git counts as broken
CHECKPOINTS = ('last.pth', 'best_model.pth')
LOGS = ('train.csv', 'online.csv', 'updates.csv', 'labeling.csv')
RUN_KEYS = {'flags': dict, 'fingerprint': str, 'rows': int, 'random': dict, 'threads': int}
RESUME_KEYS = {  # what last.pth of each kind has, so that --resume can go on
    'offline': RUN_KEYS | {'rng': dict, 'best': float, 'infos': list},
    'online': RUN_KEYS | {'source': str, 'replay': dict, 'collector': dict, 'rng': dict, 'best': float,
                          'round': (dict, type(None))},
    'labeling': RUN_KEYS | {'rounds_done': int, 'probes': list, 'solved_actions': torch.Tensor,
                            'converged': torch.Tensor, 'solving_probes': int, 'fit': (dict, type(None))},
}
FREE_FLAGS = (  # flags that may change when a run is resumed
    'num_updates', 'num_epochs', 'max_steps', 'max_episodes',  # budgets may be raised
    'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint',  # files may move; contents are compared
    'device', 'mamba_backend', 'save_dir', 'resume',
    'maze_figures', 'format', 'video', 'tensorboard', 'wandb', 'wandb_project', 'wandb_group', 'wandb_tags',
)


@dataclasses.dataclass
class RunConfig:
    """data, files and machine of a run"""
    dataset: str = flag('antmaze-medium-navigate-v0', 'OGBench dataset, which names the environment too',
                        basic=True)
    env: str = flag('', 'custom environment module:factory; with --dataset_path (docs/own_robot.md)',
                    basic=True)
    dataset_path: str = flag('', 'npz file to use instead of a search by name', basic=True)
    data_dir: str = flag('datasets', 'folder of dataset files and downloads')
    dataset_url: str = flag('', 'base URL of a mirror to download from')
    max_trajectories: int = flag(0, 'number of trajectories to use; 0 uses all', least=0)
    seed: int = flag(0, 'seed of all random generators', least=0, most=2**32 - 1, basic=True)
    device: str = flag('auto', 'auto, cpu, cuda or mps', basic=True)
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan',
                              choices=('auto', 'torch', 'mamba_ssm'))
    tensorboard: bool = flag(False, 'log to TensorBoard, which needs its package')
    wandb: bool = flag(False, 'log to Weights & Biases, which needs its package')
    wandb_project: str = flag('', 'project of Weights & Biases; default: WANDB_PROJECT, or opso')
    wandb_group: str = flag('', 'group of Weights & Biases; default: WANDB_RUN_GROUP')
    wandb_tags: str = flag('', 'tags of Weights & Biases, such as ant,k25; default: WANDB_TAGS')
    save_dir: str = flag('', 'run folder; default: a new <half>_checkpoints/<dataset>/seed<seed>', basic=True)
    resume: str = flag('no', 'continue the run in --save_dir, or the newest; auto: if there is one', bare='yes',
                       choices=('no', 'yes', 'auto'), basic=True)

    @property
    def name(self):
        """Name of the environment and of its runs: --env, or the dataset."""
        return self.env or self.dataset


# -------------------------------------------------------------------------------------------------- folders
def runs_of(root, name):
    """Return the folder of all runs of a dataset or a custom environment."""
    return Path(root) / name.replace(':', '.')  # Windows forbids : in names


def results_in(folder):
    """Return the names of files in a folder that a new run would replace: checkpoints, logs with rows, labels.

    A foreign config.json counts, that of a run which has made no step yet does not.
    """
    folder = Path(folder)
    names = [name for name in (*CHECKPOINTS, 'actions.npz') if (folder / name).exists()]
    names += [name for name in LOGS if (folder / name).exists() and _has_rows(folder / name)]
    if (folder / 'config.json').exists() and not _is_config(folder / 'config.json'):
        names.append('config.json')
    return names


def _has_rows(path):
    """Return whether a file has more than the header of a CSV."""
    return path.is_dir() or len(path.read_bytes().splitlines()) > 1


def _is_config(path):
    """Return whether a file is one that `write_config` has written."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {'argv', 'flags', 'versions'} <= content.keys()


def is_run(folder):
    """Return whether a folder holds a run, which --resume can continue or has to refuse."""
    return (Path(folder) / 'config.json').exists() or bool(results_in(folder))


def new_run_dir(root, name, seed, save_dir='', resume=False):
    """Return the folder of a run: `save_dir`, or <root>/<name>/seed<seed>.

    If the latter holds results, -run2, -run3, … is appended, so that no command overwrites any. With
    `resume` the folder is the newest of these.

    Raises:
        ValueError: `save_dir` holds results, and `resume` is not set.
    """
    if save_dir:
        found = results_in(save_dir)
        if found and not resume:
            raise ValueError(f'{save_dir} holds a run already ({", ".join(found)}): add --resume, or name '
                             'another --save_dir')
        return Path(save_dir)

    base = runs_of(root, name) / f'seed{seed}'
    newest = base
    candidate = base
    number = 1
    while is_run(candidate) if resume else results_in(candidate) or lock_owner(candidate):
        newest = candidate
        number += 1
        candidate = base.with_name(f'{base.name}-run{number}')
    return newest if resume else candidate


def check_unchanged(saved, current):
    """Raise ValueError that names the flags which differ from the saved ones; `FREE_FLAGS` may differ.

    Args:
        saved, current: {name: value} of flags.
    """
    changed = [
        f'--{name} was {value}, is {current.get(name)}'
        for name, value in saved.items()
        if name not in FREE_FLAGS and current.get(name) != value
    ]
    if changed:
        raise ValueError('--resume needs the flags that the run was started with: ' + '; '.join(changed))


def write_config(folder, *configs, **extra):
    """Write config.json: command line, flags, versions of packages, git commit (or None), and `extra`."""
    versions = {'python': platform.python_version()}
    for name in ('torch', 'numpy', 'ogbench', 'mujoco', 'gymnasium', 'mamba-ssm'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None

    content = {
        'argv': sys.argv,
        'flags': _as_flags(configs),
        'versions': versions,
        'git_commit': git_commit(),
        **extra,
    }
    text = json.dumps(content, indent=2).encode()
    write_atomic(Path(folder) / 'config.json', lambda file: file.write(text))


def git_commit():
    """Return the commit of this code; None without a repository, or if git is missing, broken or hangs."""
    command = ['git', f'--git-dir={ROOT / ".git"}', 'rev-parse', '--verify', 'HEAD']
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=GIT_SECONDS)
    except (OSError, ValueError, subprocess.TimeoutExpired):  # ValueError: its output is no text
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _as_flags(configs):
    """Return {name: value} of the fields of all dataclasses; the last one of a repeated name counts.

    With --env, the dataset is the environment: its default names another robot.
    """
    flags = {}
    for config in configs:
        flags |= dataclasses.asdict(config)
    if flags.get('env'):
        flags['dataset'] = flags['env']
    return flags


# ----------------------------------------------------------------------------------------------------- runs
class Stopped(BaseException):
    """Raised when a signal stops the program, after work in progress was finished or dropped.

    Like KeyboardInterrupt it is not an Exception, so that `except Exception` does not catch it.
    """


class Stop:
    """Context that handles Ctrl-C (SIGINT), SIGTERM, and where they exist SIGHUP (the terminal is closed), SIGUSR1
    and SIGUSR2 (warnings of a batch system).

    After a signal, the next call of `check` raises `Stopped`. Inside `interruptible` the signal raises it at
    once. A second Ctrl-C or SIGTERM ends the process immediately; a terminal may send SIGHUP twice.
    """

    def __init__(self):
        self.signal = None  # number of the received signal
        self.is_interruptible = False
        self.old_handlers = {}  # signal number -> handler to restore
        self.terminals = []  # file descriptors of output that is a terminal

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self.terminals = [output for output in (1, 2) if os.isatty(output)]
            for number in stop_signals():
                self.old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        # a closed terminal fails every write, which would end the run before it is saved
        if number == getattr(signal, 'SIGHUP', None):
            while self.terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.terminals.pop())

        if self.signal:
            if number in ENDING_SIGNALS:
                os._exit(128 + number)
            return
        self.signal = number
        if self.is_interruptible:
            raise Stopped
        with contextlib.suppress(OSError):  # nothing reads stderr
            os.write(2, b'\nstopping after this update; repeat the signal to stop at once\n')

    def check(self):
        """Raise `Stopped` if a signal was received."""
        if self.signal:
            raise Stopped

    @contextlib.contextmanager
    def interruptible(self):
        """Context for work that can be dropped: a signal raises `Stopped` inside it."""
        self.is_interruptible = True
        try:
            self.check()
            yield
        finally:
            self.is_interruptible = False


def stop_signals():
    """Return the signals that stop a run; `nohup` ignores SIGHUP, and a run leaves it ignored."""
    others = [getattr(signal, name) for name in ('SIGHUP', 'SIGUSR1', 'SIGUSR2') if hasattr(signal, name)]
    return [*ENDING_SIGNALS, *(number for number in others if signal.getsignal(number) != signal.SIG_IGN)]


@contextlib.contextmanager
def open_run(kind, script, *configs):
    """Context of one run of a trainer, a `Run`.

    The folder is locked and signals are handled. `Stopped` ends the program with exit code 128 + the number of
    the signal (130 for Ctrl-C), after the command that resumes the run is printed.

    Args:
        kind: 'offline', 'online' or 'labeling'.
        script: path of the trainer.
        configs: dataclasses of its flags, a `RunConfig` first.

    Raises:
        ValueError: another process works in the folder, or the flags contradict the checkpoint.
        FileNotFoundError: there is no run to resume, or its last.pth is missing.
    """
    config = configs[0]
    check_trackers(name for name in INSTALL if getattr(config, name))
    root = f'{kind}_checkpoints'
    folder = new_run_dir(root, config.name, config.seed, config.save_dir, config.resume != 'no').resolve()
    if config.resume == 'yes' and not is_run(folder):
        raise FileNotFoundError(f'--resume: no run in {folder}, there is neither last.pth nor config.json; '
                                '--resume auto begins one')

    with Stop() as stop, run_lock(folder):
        try:
            if is_run(folder):
                remove_leftovers(folder)
            yield Run(kind, script, folder, configs, stop)
        except Stopped:
            if (folder / 'config.json').exists():
                print(f'stopped; continue with:\n{resume_command(script, folder, configs)}')
            else:
                print('stopped before the run began')
            sys.exit(128 + stop.signal)


class Run:
    """A run and its files; made by `open_run`.

    `saved` is the checkpoint to continue from; None in a new run, or if the run was killed before its first
    save.
    """

    def __init__(self, kind, script, folder, configs, stop):
        self.kind = kind
        self.script = script
        self.folder = folder
        self.configs = configs
        self.stop = stop
        self.flags = _as_flags(configs)
        self.last = folder / 'last.pth'
        self.log = None  # before `start_logging`

        self.saved = None
        if self.flags['resume'] != 'no':
            self.saved = self._load_saved()

    def _load_saved(self):
        """Return the checkpoint to continue from, or None if the run was killed before it saved one.

        Raises:
            FileNotFoundError: last.pth is missing, although the run has saved one.
            ValueError: last.pth is of other flags, or --resume cannot continue it.
        """
        if not self.last.exists():
            self._check_never_saved()
            return None

        saved = load_checkpoint(self.last, self.kind)
        if missing := [name for name in RESUME_KEYS[self.kind] if name not in saved]:
            raise ValueError(f'{self.last} cannot be resumed, since {", ".join(missing)} are not in it; of an '
                             'online run, only last.pth has them: use a copy of it, or start in another '
                             '--save_dir')
        with prefix_errors(self.last):
            check_types(saved, RESUME_KEYS[self.kind])
            self._take_numbers(saved['flags'])
        check_unchanged(saved['flags'], self.flags)
        return saved

    def _take_numbers(self, saved):
        """Set the flags that follow from the data, and are not given, to those of the saved run."""
        names = [field.name for config in self.configs for field in dataclasses.fields(config)
                 if field.metadata.get('from_data')]
        self.set_flags(**{name: saved[name] for name in names if not self.flags[name] and name in saved})
        check_ranges(*self.configs)

    def set_flags(self, **values):
        """Replace flags by the numbers that follow from the data, in the configs and in the run's record."""
        for name, value in values.items():
            for config in self.configs:
                if hasattr(config, name):
                    setattr(config, name, value)
        self.flags |= values
        if self.log:
            write_config(self.folder, *self.configs, **self.extra)

    def _check_never_saved(self):
        """Raise FileNotFoundError if last.pth is missing although it was saved."""
        # logs alone may be those of a run that was killed before it saved for the first time
        found = [name for name in results_in(self.folder) if name not in LOGS or self._has_saved(name)]
        if found:
            copy = ', copy best_model.pth to last.pth' if self.kind == 'offline' and found[0] in CHECKPOINTS else ''
            raise FileNotFoundError(f'--resume: {self.folder} has {", ".join(found)}, but last.pth is missing: '
                                    f'put it back{copy}, or start a new run in another --save_dir')

    def _has_saved(self, log):
        """Return whether a log shows that last.pth was saved.

        It is saved before a validation or an evaluation is logged, and after each other row but updates.csv's.
        """
        rows = read_csv(self.folder / log)
        measured = any(name.startswith(('validation/', 'evaluation/')) for row in rows for name in row)
        return measured or (log in ('online.csv', 'labeling.csv') and len(rows) > 1)

    def start_logging(self, csv_name, step, data, **extra):
        """Write config.json and open the CSV.

        A resumed run also restores the random generators and the number of threads, which the order of sums
        depends on.

        Args:
            csv_name: file name of the CSV.
            step: step at which the run starts or resumes; later rows of the CSV are dropped.
            data: fingerprint of the training data.
            extra: entries of config.json.

        Returns:
            MetricsLog.

        Raises:
            ValueError: the data differ from those of the resumed run.
        """
        if self.saved:
            fingerprint = self.saved['fingerprint']
            if fingerprint != data:
                raise ValueError(f'--resume needs the data that the run was started with: {fingerprint}; '
                                 f'this is {data}')
            with prefix_errors(self.last):
                check_layout(self.saved, {'threads': Number(int, least=1)})
                restore_random_state(self.saved['random'])
            if 'OMP_NUM_THREADS' not in os.environ:
                torch.set_num_threads(min(self.saved['threads'], MOST_THREADS))

        self.data = data
        # trackers first: what fails before config.json is written leaves no run
        names = [name for name in INSTALL if self.flags[name]]
        title = f'{self.kind} {self.folder.parent.name} {self.folder.name}'
        trackers = open_trackers(names, self.folder, title, self.flags, step)

        self.extra = extra
        write_config(self.folder, *self.configs, **extra)
        self.log = MetricsLog(self.folder / csv_name, step)
        self.log.trackers = trackers

        if self.saved and len(self.log.rows) != self.saved['rows']:
            rows = f'{len(self.log.rows)} of the {self.saved["rows"]} logged rows'
            print(f'warning: {self.log.path} has {rows}', file=sys.stderr)
        return self.log

    def save(self, content, name='last.pth'):
        """Write a checkpoint: the dict `content` and everything that --resume compares and restores."""
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
            info: {name: float} of the update.
            rows: {name: int array}, where the batch lies in the data; written to a file.

        Raises:
            FloatingPointError: that names the term, the update, that file and the checkpoint to go back to.
        """
        bad = [name for name, value in info.items() if not math.isfinite(float(value))]
        wrong = next((name for name in bad if name.endswith('_loss')), bad[0])  # terms precede their total

        path = self.folder / f'nonfinite_update{step}.npz'
        write_atomic(path, lambda file: np.savez(file, step=step, **rows))
        good = self.last if self.last.exists() else 'none yet'
        raise FloatingPointError(
            f'{wrong} is {float(info[wrong])} at update {step}; rows of its batch: {path}; '
            f'last good checkpoint: {good}. Try a smaller --lr or --grad_clip')


def resume_command(script, folder, configs):
    """Return the command, quoted for the shell, that continues the run in `folder`."""
    flags = []
    for config in configs:
        for field in dataclasses.fields(config):
            # a field of several configs has the value of the first one
            value = next(getattr(other, field.name) for other in configs if hasattr(other, field.name))
            if value == field.default or field.name in ('save_dir', 'resume'):
                continue
            if isinstance(value, bool):
                flags.append(f'--{field.name}' if value else f'--no-{field.name}')
            else:
                flags += [f'--{field.name}', str(value)]

    words = ['python', _relative(script), *flags, '--save_dir', _relative(folder), '--resume']
    return subprocess.list2cmdline(words) if os.name == 'nt' else shlex.join(words)


def _relative(path):
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive of Windows
        return str(path)
