"""Convert recordings of other formats into the npz file that OPSO reads.

    python scripts/convert_data.py INPUT states.npz

INPUT is a file or a folder of files (support/recordings.py has the formats, docs/data.md a command for each).
Recordings with time stamps are cut at gaps and, if they are not evenly spaced, resampled to one rate.
"""

import argparse
import collections
import dataclasses
import shlex
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.files import write_atomic  # noqa: E402
from support.flags import add_flags, check_ranges, flag, run_main, summary  # noqa: E402
from support.formats import recognize  # noqa: E402
from support.progress import progress_bar  # noqa: E402
from support.recordings import SECONDS, Choices, find_files, read_recording  # noqa: E402
from support.steps import find_period  # noqa: E402
from support.text import listed  # noqa: E402
from support.tolerances import find_origin  # noqa: E402

EVEN = 0.02  # deviation of time steps, relative to the median one, up to which rows are evenly spaced
GAP_STEPS = 3.0  # time step, in median ones, that is a gap
MAX_DECREASES = 0.1  # fraction of time steps below 0, from which the rows are not in the order of time
MAX_NAMES = 24  # of dimensions in the report
SLOWEST_RATE, FASTEST_RATE = 1e-3, 1e5  # rows per second that are no mistake in the unit of time
MAX_SINGLE = 0.05  # fraction of rows that are a piece of their own, above which they may be no ends of episodes
CLOCK_RISES = 0.95  # fraction of steps in which a column grows, from which it may be time


@dataclasses.dataclass
class ConversionConfig:
    """columns, rate and borders of a conversion"""

    columns: str = flag('', 'columns of the state, in this order, such as x,y')
    ends: str = flag('', 'columns that mark or number episodes, such as timeouts')
    time: str = flag('', 'column of time stamps')
    time_unit: str = flag('s', 'unit of time stamps that are numbers', choices=tuple(SECONDS))
    rate: float = flag(0.0, 'rows per second of the output; 0: those of the recordings', least=0)
    gap: float = flag(0.0, 'seconds between rows that begin an episode; 0: three median time steps', least=0)
    velocities: bool = flag(False, 'append finite differences of all dimensions, per second')
    actions: bool = flag(False, 'keep the actions, which OPSO does not learn from')
    overwrite: bool = flag(False, 'replace an output that exists')


@dataclasses.dataclass
class Piece:
    """Successive rows of an episode."""

    states: np.ndarray  # (T, S)
    times: np.ndarray | None  # (T,) seconds
    actions: np.ndarray | None  # (T, A)

    def take(self, rows):
        """Return the piece of some rows (n,)."""
        return Piece(*(None if array is None else array[rows] for array in vars(self).values()))


class Conversion:
    """Cuts, resamples and joins recordings, and counts what it does.

    Args:
        config: ConversionConfig.
    """

    def __init__(self, config):
        self.config = config
        self.counts = collections.Counter()

    def convert(self, recordings):
        """Return {name: array} of the output, the names of its dimensions, and its rate (0: no time stamps).

        Raises:
            ValueError: the recordings do not fit the flags or each other, or nothing is left of them.
        """
        config = self.config
        first = recordings[0]
        for other in recordings:
            if (other.names, other.times is None) != (first.names, first.times is None):
                raise ValueError(f'{other.path}: its dimensions are {listed(other.names, 8)}, those of '
                                 f'{first.path} {listed(first.names, 8)}; name columns of all files with '
                                 '--columns and --time')
        if first.times is None:
            recordings = [self.with_times(recording) for recording in recordings]
        if config.actions and any(recording.actions is None for recording in recordings):
            raise ValueError(f'{first.path}: there are no actions in it; leave out --actions')

        # pieces without gaps
        pieces = [piece for recording in recordings for piece in self.cut(recording)]
        rows = sum(len(recording.states) for recording in recordings)
        if self.counts['steps back in time'] > MAX_DECREASES * rows:
            raise ValueError(f'{first.path}: time decreases {self.counts["steps back in time"]:,} times in '
                             f'{rows:,} rows; sort the rows by time, or name the column that numbers the '
                             'episodes with --ends')

        # one rate
        names = first.names
        rate = 0.0
        pieces = self.drop_single(pieces)
        if recordings[0].times is not None:
            rate = config.rate or find_rate(pieces)
            if not config.rate and not SLOWEST_RATE <= rate <= FASTEST_RATE:
                raise ValueError(f'{first.path}: by its time stamps there are {rate:.3g} rows per second; name their '
                                 'unit with --time_unit, or the rate with --rate')
            pieces = self.drop_single(self.resample(pieces, 1 / rate))
            names = names + [f'{name}, velocity' for name in names] * config.velocities
        return join(pieces), names, rate

    def with_times(self, recording):
        """Return a Recording without time stamps with those of --rate, if it is given.

        Raises:
            ValueError: a flag needs time stamps.
        """
        config = self.config
        needs = {'--gap': config.gap, '--time_unit': config.time_unit != ConversionConfig.time_unit}
        needs |= {'--velocities': config.velocities and not config.rate}
        if given := next((name for name, is_given in needs.items() if is_given), ''):
            raise ValueError(f'{recording.path}: there are no time stamps, which {given} needs; name their column '
                             'with --time' + ', or give --rate if rows are evenly spaced' * (given == '--velocities'))
        if not config.rate:
            return recording
        return dataclasses.replace(recording, times=np.arange(len(recording.states)) / config.rate)

    def cut(self, recording):
        """Yield the Pieces of a Recording between ends of episodes, NaN, gaps and steps back in time."""
        actions = recording.actions if self.config.actions else None
        whole = Piece(recording.states, recording.times, actions)
        is_good = np.isfinite(recording.states).all(1)
        if recording.times is not None:
            is_good &= np.isfinite(recording.times)
        self.counts['rows with NaN left out'] += int((~is_good).sum())

        for rows in np.split(np.arange(len(is_good)), np.flatnonzero(recording.ends)[:-1] + 1):
            rows = rows[is_good[rows]]
            self.counts['episodes'] += 1
            if recording.times is None:
                is_border = np.diff(rows) > 1
            else:
                # equal time stamps are the same row
                is_new = np.diff(recording.times[rows], prepend=-np.inf) != 0
                self.counts['rows with the time of the row before left out'] += int((~is_new).sum())
                rows = rows[is_new]
                is_border = self.find_gaps(np.diff(recording.times[rows]))
            yield from (whole.take(part) for part in np.split(rows, np.flatnonzero(is_border) + 1))

    def find_gaps(self, steps):
        """Return which time steps (n,), in seconds, are gaps or lead back."""
        forward = steps[steps > 0]
        typical = np.median(forward) if len(forward) else 0
        wanted = 1 / self.config.rate if self.config.rate else 0
        gap = self.config.gap or GAP_STEPS * max(typical, wanted)
        self.counts['gaps cut'] += int((steps > gap).sum())
        self.counts['steps back in time'] += int((steps < 0).sum())
        return (steps > gap) | (steps < 0)

    def drop_single(self, pieces):
        """Return the pieces of at least two rows; raise ValueError if there are none."""
        kept = [piece for piece in pieces if len(piece.states) > 1]
        self.counts['pieces of one row left out'] += len(pieces) - len(kept)
        if not kept:
            raise ValueError('nothing is left, since no two successive rows have finite states; see '
                             '--columns, --ends and --gap')
        return kept

    def resample(self, pieces, step):
        """Return Pieces with rows every `step` seconds, and with velocities if the flag asks for them."""
        angles = find_angles(pieces)
        resampled = []
        for piece in pieces:
            # rows that are evenly spaced stay as they are
            is_even = np.abs(np.diff(piece.times) - step).max() <= EVEN * step
            self.counts['episodes resampled'] += not is_even
            times = piece.times
            if not is_even:
                count = int((times[-1] - times[0]) / step + EVEN) + 1
                times = np.minimum(times[0] + step * np.arange(count), times[-1])
            smooth = interpolate(piece, times, angles)
            parts = [piece.states if is_even else wrapped(smooth, angles)]

            if self.config.velocities and len(times) > 1:
                parts.append(np.gradient(smooth, step, axis=0))
            # an action is that of the last row before
            rows = np.searchsorted(piece.times, times + EVEN * step) - 1
            resampled.append(Piece(np.concatenate(parts, axis=1), times, piece.take(rows).actions))
        return resampled


def find_angles(pieces):
    """Return {dimension: (low end, period)} of the angles that wrap in Pieces."""
    states = np.concatenate([piece.states for piece in pieces])
    ends = np.cumsum([len(piece.states) for piece in pieces]) - 1
    periods = {dim: period for dim, values in enumerate(states.T) if (period := find_period(values, ends))}
    return {dim: (-period / 2 if states[:, dim].min() < -EVEN * period else 0.0, period)
            for dim, period in periods.items()}


def interpolate(piece, times, angles):
    """Return the states (n, S) float64 of a Piece at times (n,), linear between rows; angles do not wrap."""
    columns = piece.states.T.astype(np.float64)
    for dim, (_, period) in angles.items():
        columns[dim] = np.unwrap(columns[dim], period=period)
    return np.stack([np.interp(times, piece.times, values) for values in columns], axis=1)


def wrapped(states, angles):
    """Return states (n, S) whose angles are in their range."""
    states = states.copy()
    for dim, (low, period) in angles.items():
        states[:, dim] = (states[:, dim] - low) % period + low
    return states


def find_rate(pieces):
    """Return the rows per second of Pieces, to three digits, with jitter and lost rows taken into account."""
    steps = np.concatenate([np.diff(piece.times) for piece in pieces])
    rows = np.round(steps / np.median(steps))  # that a time step stands for
    return float(f'{rows.sum() / steps.sum():.3g}')


def join(pieces):
    """Return {name: array} of Pieces: float32, or float64 where a large offset needs more digits."""
    states = np.concatenate([piece.states for piece in pieces])
    terminals = np.zeros(len(states), bool)
    terminals[np.cumsum([len(piece.states) for piece in pieces]) - 1] = True
    if not np.can_cast(states.dtype, np.float32) and not find_origin(states).any():
        states = states.astype(np.float32)
    arrays = {'observations': states, 'terminals': terminals}
    if pieces[0].actions is not None:
        arrays['actions'] = np.concatenate([piece.actions for piece in pieces]).astype(np.float32)
    return arrays


def report(recordings, counts, names, rate):
    """Print what was read, what the dimensions are, and what was done."""
    formats = ', '.join(sorted({recognize(recording.path) for recording in recordings}))
    rows = sum(len(recording.states) for recording in recordings)
    episodes = counts.pop('episodes')
    print(f'read: {len(recordings)} file(s), {formats}; {rows:,} rows, {episodes:,} episode(s)')

    absent = {'episodes': 'as the files have them', 'not read': 'nothing',
              'time stamps': 'none; two rows in a row must be one environment step apart'}
    for purpose, columns in recordings[0].used.items():
        print(f'{purpose}: {listed(columns, MAX_NAMES) or absent[purpose]}')

    print('dimensions: ' + listed([f'{dim} {name}' for dim, name in enumerate(names)], MAX_NAMES))
    if rate:
        print(f'rate: {rate:.5g} rows per second')
    print('changes: ' + (', '.join(f'{count:,} {what}' for what, count in counts.items() if count) or 'none'))

    # what may have been read in another way than it was meant
    if episodes == 1 and not counts['gaps cut']:
        print('warning: this is one episode; if it holds several, name columns that mark them with --ends')
    if counts['pieces of one row left out'] > MAX_SINGLE * rows:
        ends = listed([f'`{name}`' for name in recordings[0].used['episodes']], MAX_NAMES)
        print(f'warning: {counts["pieces of one row left out"]:,} rows are episodes of their own by {ends}; if these '
              'do not end episodes, as terminals at a goal, name the columns that do with --ends')
    for name in find_clocks(recordings):
        print(f'warning: `{name}` grows in nearly every row; if it is time, name it with --time, else leave it out '
              'with --columns unless it is a part of the state')


def find_clocks(recordings):
    """Return the names of dimensions that may be time stamps: none if the time is known."""
    if recordings[0].times is not None:
        return []
    rises = np.concatenate([np.diff(recording.states, axis=0) > 0 for recording in recordings])
    return [name for name, share in zip(recordings[0].names, rises.mean(0), strict=True)
            if len(rises) > 1 and share >= CLOCK_RISES]


def main(argv=None):
    """Convert a file or a folder."""
    parser = argparse.ArgumentParser(description=summary(__doc__), allow_abbrev=False,
                                     epilog='docs/data.md has a command for each format')
    parser.add_argument('input', help='file or folder of recordings')
    parser.add_argument('output', help='npz file to write')
    add_flags(parser, ConversionConfig)
    flags = vars(parser.parse_args(argv))
    source, output = flags.pop('input'), Path(flags.pop('output'))
    config = ConversionConfig(**flags)
    check_ranges(config)

    output = output.with_name(f'{output.name.removesuffix(".npz")}.npz')
    if output.exists() and not config.overwrite:
        raise ValueError(f'{output} exists; name another output, or replace it with --overwrite')
    if output.exists() and output.samefile(source):
        raise ValueError(f'{output} is the input, which stays as it is; name another output')

    # read, convert, write
    columns, ends = (tuple(filter(None, text.split(','))) for text in (config.columns, config.ends))
    choices = Choices(columns, ends, config.time, config.time_unit)
    recordings = [read_recording(path, choices)
                  for path in progress_bar(find_files(source), 'reading', delay=1)]
    conversion = Conversion(config)
    arrays, names, rate = conversion.convert(recordings)
    arrays['names'] = np.array(names)
    write_atomic(output, lambda file: np.savez_compressed(file, **arrays))

    report(recordings, conversion.counts, names, rate)
    print(f'{output}: {arrays["terminals"].sum():,} trajectories, {len(arrays["terminals"]):,} states of '
          f'{len(names)} dimensions\nnext: python ogbench_utils.py check {shlex.quote(str(output))}')


if __name__ == '__main__':
    run_main(main)
