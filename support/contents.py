"""Checks of what a checkpoint contains: types, sizes and ranges of tensors and numbers.

A layout is a dict {name: Tensor or Number}. Sizes have names, and a name has the same size in all tensors of a
layout: with 'K S' and 'K', the second one has as many entries as the first one has rows.
"""

import math
from typing import NamedTuple


class Tensor(NamedTuple):
    """A tensor of a layout; all its values are finite."""

    dtype: str  # 'float' or 'int' of any precision, or the name of one, such as 'float32'
    shape: str = ''  # names of sizes, or numbers, such as 'K S' or 'A M 1'
    least: float = -math.inf  # smallest value
    below: str = ''  # name of a size that all values are below


class Number(NamedTuple):
    """A number or bool of a layout."""

    kind: type
    least: float = -math.inf


def check_layout(content, layout, **sizes):
    """Raise ValueError that names an entry of a dict which does not fit its layout.

    Args:
        content: dict of tensors, numbers and whatever the layout does not name.
        layout: {name: Tensor or Number}.
        sizes: known sizes by name.

    Returns:
        {name: int}, all sizes.
    """
    sizes = dict(sizes)
    for name, wanted in layout.items():
        if name not in content:
            raise ValueError(f'`{name}` is missing')
        if isinstance(wanted, Number):
            _check_number(name, content[name], wanted)
        else:
            _check_tensor(name, content[name], wanted, sizes)
    for name, wanted in layout.items():  # a size may have its name after the values that it bounds
        if isinstance(wanted, Tensor):
            _check_values(name, content[name], wanted, sizes)
    return sizes


def has_type(value, kind):
    """Return whether a value has a type; an int is a float, too, but a bool is not an int."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _check_number(name, value, wanted):
    if not has_type(value, wanted.kind):
        raise ValueError(f'`{name}` is {type(value).__name__}; it must be {wanted.kind.__name__}')
    if wanted.kind in (int, float) and not (math.isfinite(value) and value >= wanted.least):
        raise ValueError(f'`{name}` is {value}; it must be finite and at least {wanted.least}')


def _check_tensor(name, value, wanted, sizes):
    """Check type and shape of a tensor, and add new names to `sizes`."""
    import torch  # here, since flags, data files and videos need none of it, and its import takes seconds

    if not isinstance(value, torch.Tensor):
        raise ValueError(f'`{name}` is {type(value).__name__}; it must be a tensor')

    dtype = str(value.dtype).removeprefix('torch.')
    if not dtype.startswith(wanted.dtype):
        raise ValueError(f'`{name}` is of {dtype}; it must be of {wanted.dtype}')

    names = wanted.shape.split()
    if value.dim() == len(names):
        expected = [int(size) if size.isdigit() else sizes.setdefault(size, found)
                    for size, found in zip(names, value.shape, strict=True)]
        if list(value.shape) == expected:
            return
    expected = ', '.join(f'{size} = {sizes[size]}' if size in sizes else size for size in names)
    raise ValueError(f'`{name}` has the shape {tuple(value.shape)}; it must be ({expected})')


def _check_values(name, value, wanted, sizes):
    """Check that the values of a tensor are finite and in their range."""
    if not value.numel():
        return
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f'`{name}` has values that are not finite')
    most = sizes[wanted.below] - 1 if wanted.below else math.inf
    if value.min() < wanted.least or value.max() > most:
        raise ValueError(f'`{name}` has values outside {wanted.least} to {most}')
