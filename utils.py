"""Small tools that both halves of OPSO share: flags, seeds, devices, losses, schedules."""

import argparse
import dataclasses
import getpass
import math
import operator
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch


# --------------------------------------------------------------------------------------------------- flags
def flag(default, help, **options):
    """A dataclass field that `add_flags` turns into a command-line flag; options: `choices`, `type`, and the range that
    `check_ranges` knows: `least`, `most` (included), `above`, `below` (excluded)."""
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


def check_ranges(*configs):
    """Raise ValueError for a number outside the range of its flag, NaN and infinity among them."""
    tests = {'least': (operator.ge, 'at least'), 'most': (operator.le, 'at most'), 'above': (operator.gt, 'above'),
             'below': (operator.lt, 'below')}
    for field, value in ((f, getattr(c, f.name)) for c in configs for f in dataclasses.fields(c)):
        for name, (holds, words) in tests.items():
            if name in field.metadata and not (holds(value, field.metadata[name]) and math.isfinite(value)):
                raise ValueError(f'--{field.name} {value}: must be {words} {field.metadata[name]}')
        if field.metadata.get('choices') and value not in field.metadata['choices']:
            raise ValueError(f'--{field.name} {value}: must be one of {", ".join(field.metadata["choices"])}')


def parse_flags(description, *config_classes, argv=None):
    """-> one instance of each dataclass, filled from the command line (unknown flags end the program)."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for config_class in config_classes:
        add_flags(parser, config_class)
    values = vars(parser.parse_args(argv))
    return [cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)}) for cls in config_classes]


def run_main(main):
    """Run a script's `main`: what the user can mend is one line on stderr and exit code 2, not a traceback."""
    # matplotlib would keep its list of fonts in the home directory
    os.environ.setdefault('MPLCONFIGDIR', str(Path(tempfile.gettempdir(), f'matplotlib-{getpass.getuser()}')))
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)


def _fail(error):
    print(f'error: {error}', file=sys.stderr)
    return 2


def make_config(config_class, values):
    """A dataclass from a checkpoint's dict. Raises ValueError that names fields which this code does not know."""
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(config_class)})
    if unknown:
        raise ValueError(f'it has settings that this version does not know: {", ".join(unknown)}')
    return config_class(**values)


def load_weights(module, state):
    """`load_state_dict`, with a ValueError that names the first tensor that does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f'its networks differ in size from what its settings say: {str(error).splitlines()[1].strip()}'
                         ) from error


# ------------------------------------------------------------------------------------------ numbers, devices
def set_seed(seed):
    """Seed python, numpy and torch. Environments and samplers are seeded where they are made."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state():
    """-> states of python's, numpy's and torch's global generators, as tensors and builtins."""
    version, python, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {'python': [version, list(python), gauss], 'torch': torch.get_rng_state(), 'cuda': cuda,
            'numpy': [name, torch.from_numpy(key.astype(np.int64)), position, has_gauss, cached]}


def restore_random_state(state):
    """Continue the global generators where `random_state` found them."""
    version, python, gauss = state['python']
    random.setstate((version, tuple(python), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


def choose_device(requested):
    """'auto', 'cpu', 'cuda' or 'mps' -> torch.device. Raises ValueError where the asked one is not there."""
    available = {'cpu': True, 'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
    if requested == 'auto':
        requested = 'cuda' if available['cuda'] else 'cpu'  # these networks are too small for mps to pay
    if not available.get(requested.split(':')[0], False):
        raise ValueError(f'--device {requested} is not available here; use --device auto or --device cpu')
    return torch.device(requested)


def device_line(requested, device, backend):
    """One line on where a run computes, why there, and how (`choose_backend`'s words)."""
    if requested != 'auto':
        reason = 'as asked'
    elif device.type == 'cuda':
        reason = torch.cuda.get_device_name(device)
    else:
        reason = 'no CUDA GPU here' + (', and mps does not pay for networks this small'
                                       if torch.backends.mps.is_available() else '')
    return f'device {device} ({reason}): {backend}'


def duration(seconds):
    """4210 -> '1 h 10 min'."""
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'


def expected_time(first, done, total, seconds):
    """One line on how long the rest takes, judged by the `seconds` that it took from `first` to `done`."""
    return (f'expected time: {duration((total - done) * seconds / (done - first))} for the other {total - done:,} of '
            f'{total:,}, at {(done - first) / seconds:.3g} per second')


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


def as_floats(info):
    """Dict of 0-d tensors -> the same with plain floats, which a checkpoint can hold; one transfer from the device. To
    be called at once: thousands of small tensors that are kept break the memory between them into pieces too small
    for the next batch."""
    return dict(zip(info, torch.stack(list(info.values())).tolist(), strict=True))


class RowQueue:
    """Rows that come at the end and go at the front, without a copy of all of them each time. `rows` is a view of
    those that are there; `empty(n)` makes an array or tensor with room for n."""

    def __init__(self, empty):
        self.empty, self.storage, self.first = empty, empty(0), 0
        self.rows = self.storage

    def extend(self, n, dropped=0):
        """Drop rows at the front, make room for n more at the end -> the view of these, to be filled."""
        kept = self.rows[dropped:]
        self.first += dropped
        if self.first + len(kept) + n > len(self.storage):
            spare = len(kept) // 4  # none at first: what is filled once takes no more than it needs
            self.storage, self.first = self.empty(len(kept) + n + spare), 0
            self.storage[:len(kept)] = kept
        self.rows = self.storage[self.first:self.first + len(kept) + n]
        return self.rows[len(kept):]
