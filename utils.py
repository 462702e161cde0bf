"""Small tools that both halves of OPSO share: flags, seeds, losses, schedules, checkpoints, logs."""

import argparse
import csv
import dataclasses
import json
import os
import platform
import random
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

CHECKPOINT_FORMAT = 1


# --------------------------------------------------------------------------------------------------- flags
def flag(default, help, **options):
    """A dataclass field that `add_flags` turns into a command-line flag; options: `choices`, `type`."""
    return dataclasses.field(default=default, metadata={'help': help, **options})


def add_flags(parser, config_class):
    """One `--flag_name` (or `--flag-name`) for each field of a dataclass, its default shown in --help."""
    group = parser.add_argument_group(config_class.__name__, (config_class.__doc__ or '').strip())
    for field in dataclasses.fields(config_class):
        options = {'default': field.default, 'help': f"{field.metadata['help']} (default: {field.default})"}
        if isinstance(field.default, bool):
            options['action'] = argparse.BooleanOptionalAction
        else:
            options['type'] = field.metadata.get('type', type(field.default))
            if 'choices' in field.metadata:
                options['choices'] = field.metadata['choices']
        names = dict.fromkeys([f'--{field.name}', f"--{field.name.replace('_', '-')}"])
        group.add_argument(*names, dest=field.name, **options)


def parse_flags(description, *config_classes, argv=None):
    """-> one instance of each dataclass, filled from the command line (unknown flags end the program)."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for config_class in config_classes:
        add_flags(parser, config_class)
    values = vars(parser.parse_args(argv))
    return [cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)}) for cls in config_classes]


def run_main(main):
    """Run a script's `main`: what the user can mend is one line on stderr and exit code 2, not a traceback."""
    try:
        main()
    except (ValueError, FileNotFoundError, OSError) as error:
        sys.exit(_fail(error))


def _fail(error):
    print(f'error: {error}', file=sys.stderr)
    return 2


# ------------------------------------------------------------------------------------------ numbers, devices
def set_seed(seed):
    """Seed python, numpy and torch. Environments and samplers are seeded where they are made."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(requested):
    """'auto', 'cpu', 'cuda' or 'mps' -> torch.device. Raises ValueError where the asked one is not there."""
    available = {'cpu': True, 'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
    if requested == 'auto':
        requested = 'cuda' if available['cuda'] else 'cpu'  # these networks are too small for mps to pay
    if not available.get(requested.split(':')[0], False):
        raise ValueError(f'--device {requested} is not available here; use --device auto or --device cpu')
    return torch.device(requested)


def expectile_loss(prediction, target, expectile):
    """Mean of |expectile - 1(d < 0)| d^2 with d = target - prediction (IQL, Kostrikov et al. 2021, eq. 5).

    Its minimiser is the `expectile`-expectile of the targets: optimistic above 0.5.
    """
    difference = target - prediction
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference.square()).mean()


@torch.no_grad()
def soft_update(target, source, target_rate):
    """target <- target + target_rate (source - target), in place, for every parameter of two alike modules."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), target_rate)


def linear_schedule(start, end, duration, step):
    """From `start` at step 0 to `end` at step `duration` and after."""
    return start + (end - start) * min(max(step / max(duration, 1), 0.0), 1.0)


def mean_of(infos, prefix=''):
    """List of dicts of numbers -> dict of the means of each key over the dicts that have it, keys prefixed."""
    names = dict.fromkeys(name for info in infos for name in info)
    return {prefix + name: float(np.mean([float(info[name]) for info in infos if name in info])) for name in names}


# ---------------------------------------------------------------------------------------------------- files
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
