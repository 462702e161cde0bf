"""Small tools that both halves of OPSO share: schedules, averages of metrics, bounds of actions."""

import dataclasses

import numpy as np
import torch


def load_weights(module, state):
    """Load a state_dict. Raises ValueError that names the first tensor that does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f'its networks differ in size from what its settings say: {reason}') from error


@torch.no_grad()
def soft_update(target, source, rate):
    """Move every parameter of `target` toward that of the same module `source` by the fraction
    `rate`."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def duration(seconds):
    """Write seconds for people: 4210 is '1 h 10 min'."""
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'


def expected_time(first, done, total, seconds):
    """Return one line on how long the rest takes, given the `seconds` from `first` to `done`."""
    rate = (done - first) / seconds
    left = total - done
    return f'expected time: {duration(left / rate)} for the other {left:,} of {total:,}, at {rate:.3g} per second'


def linear_schedule(start, end, duration, step):
    """Interpolate from `start` at step 0 to `end` at step `duration` and after."""
    return start + (end - start) * min(max(step / max(duration, 1), 0.0), 1.0)


def mean_of(infos, prefix=''):
    """Average each key of a list of dicts over the dicts that have it; keys of the result are
    prefixed."""
    names = dict.fromkeys(name for info in infos for name in info)
    means = {}
    for name in names:
        values = [float(info[name]) for info in infos if name in info]
        means[prefix + name] = float(np.mean(values))
    return means


@dataclasses.dataclass
class TensorBatch:
    """A dataclass of tensors (or None) with one row per sample."""

    def to(self, device):
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def __getitem__(self, rows):
        """The same batch with some of its rows only (a slice)."""
        return self._map(lambda tensor: tensor[rows])

    def row_numbers(self):
        """{name: int array} of the fields that say where the samples lie in their data."""
        names = [field.name for field in dataclasses.fields(self) if field.name.endswith('rows')]
        return {name: getattr(self, name).cpu().numpy() for name in names}

    def _map(self, function):
        mapped = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            mapped[field.name] = function(value) if isinstance(value, torch.Tensor) else value
        return type(self)(**mapped)


def unnormalize_actions(actions, low, high):
    """Map actions (..., A) from [-1, 1] to the bounds low, high (A,) of an action space, never
    beyond; float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return np.clip(middle + half_width * actions, low, high).astype(np.float32)


def normalize_actions(actions, low, high):
    """Map actions (..., A) from the bounds low, high (A,) of an action space to [-1, 1]; float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return ((actions - middle) / half_width).astype(np.float32)


class RowQueue:
    """Rows that come at the end and go at the front, without a copy of all of them each time.
    `rows` is a view of those that are there; `empty(n)` makes an array or tensor with room for
    n."""

    def __init__(self, empty):
        self.empty = empty
        self.storage = empty(0)
        self.first = 0  # where in the storage the rows begin
        self.rows = self.storage

    def extend(self, n, dropped=0):
        """Drop rows at the front, make room for n more at the end -> the view of these, to be
        filled."""
        kept = self.rows[dropped:]
        self.first += dropped

        if self.first + len(kept) + n > len(self.storage):
            spare = len(kept) // 4  # none at first: what is filled once takes no more than it needs
            self.storage = self.empty(len(kept) + n + spare)
            self.storage[:len(kept)] = kept
            self.first = 0
        self.rows = self.storage[self.first:self.first + len(kept) + n]
        return self.rows[len(kept):]
