"""Progress of loops: a bar on a terminal; in a file or a pipe a plain line now and then."""

import contextlib
import functools
import sys
import time
import types

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines, so that the log of a long run stays short


def progress_bar(iterable=None, desc=None, **options):
    """Return a tqdm bar, or `ProgressLines` where stderr is no terminal; the options are those of tqdm."""
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(iterable, desc, **{'dynamic_ncols': True, 'mininterval': 1.0} | options)
    return ProgressLines(iterable, desc, **options)


def say(line):
    """Print a line to stdout, above the bars. A stdout without a reader or on a full disk ends no training."""
    with contextlib.suppress(OSError):
        tqdm.write(line)


def warn(line):
    """Print a line to stderr, above the bars; a stderr without a reader ends no run."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file=sys.stderr)


def duration(seconds):
    """Format seconds as hours and minutes: 4210 is '1 h 10 min'."""
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'


class ProgressLines:
    """Stands in for a tqdm bar in a log: without carriage returns, one line every `LINE_SECONDS`.

    Args:
        iterable: what to loop over; None: `update` counts.
        desc, total, initial, unit, unit_scale: as in tqdm. All other options are ignored.
    """

    def __init__(self, iterable=None, desc=None, total=None, initial=0, unit='it', unit_scale=False, **_):
        self.iterable = iterable
        self.name = desc or f'{unit}s'
        self.total = len(iterable) if total is None and hasattr(iterable, '__len__') else total
        self.initial = initial
        self.n = initial
        self.format = tqdm.format_sizeof if unit_scale else '{:,}'.format
        self.postfix = ''
        self.begin = time.monotonic()
        self.next_line = self.begin + LINE_SECONDS

    def __iter__(self):
        for item in self.iterable:
            yield item
            self.update()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def update(self, n=1):
        """Count n more; print a line if it is time for one."""
        self.n += n
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + LINE_SECONDS
            self.print_line(now)

    def print_line(self, now):
        """Print name, count, speed and postfix to stderr, if it can be written."""
        total = f' of {self.format(self.total)}' if self.total else ''
        speed = (self.n - self.initial) / (now - self.begin)
        left = f'{duration((self.total - self.n) / speed)} left' if self.total and speed and self.n < self.total else ''
        parts = [f'{self.name}: {self.format(self.n)}{total}', f'{speed:.3g} per second', left, self.postfix]
        with contextlib.suppress(OSError):
            print(', '.join(filter(None, parts)), file=sys.stderr, flush=True)

    def set_postfix_str(self, text):
        """Set the text at the end of the lines."""
        self.postfix = text

    def close(self):
        """End, without a line."""


class WorkProgress:
    """Progress of a run that does work of several kinds, such as environment steps and gradient steps.

    The share that is done is one of time: the time of each kind follows from its speed, which is that of recent work.
    It is not shown before each kind of which work is left has a speed. A terminal gets a bar, a log a line every
    `LINE_SECONDS`.

    Args:
        done: {name: count} of work that was done before, as in a resumed run.
    """

    def __init__(self, done):
        self.done = dict(done)
        self.left = dict.fromkeys(done)  # None: not known yet
        self.counted = dict.fromkeys(done, 0.0)  # recent work, and its seconds
        self.seconds = dict.fromkeys(done, 0.0)
        self.postfix = ''

        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=1.0, dynamic_ncols=True, bar_format='{desc}') if is_terminal else None
        self.interval = 1.0 if is_terminal else LINE_SECONDS
        self.clock = time.monotonic()
        self.next_line = self.clock + self.interval

    def update(self, name, n=1):
        """Count n more of a kind of work, whose time is that since the last call; show the progress now and then.

        n = 0 adds to the time of this kind alone.
        """
        now = time.monotonic()
        self.seconds[name] += now - self.clock
        self.clock = now
        self.done[name] += n
        self.counted[name] += n
        if self.left[name] is not None:
            self.left[name] = max(0.0, self.left[name] - n)
        if now >= self.next_line:
            self.next_line = now + self.interval
            self.show()

    def counter(self, name):
        """Return an object whose method `update(n)` counts one kind of work."""
        return types.SimpleNamespace(update=functools.partial(self.update, name))

    def expect(self, **left):
        """Set how much of some kinds of work is left; count recent work twice as much as the work before it."""
        self.left |= left
        for name in self.counted:
            self.counted[name] /= 2
            self.seconds[name] /= 2

    def seconds_left(self):
        """Return the expected time of the rest; None if it is not known yet."""
        rest = 0.0
        for name, left in self.left.items():
            if left is None or (left and not self.counted[name]):
                return None
            rest += left and left * self.seconds[name] / self.counted[name]
        return rest

    def share(self):
        """Return the share of the expected time of all work that is done, None if it is not known yet."""
        rest = self.seconds_left()
        if rest is None:
            return None
        past = sum(done * self.seconds[name] / self.counted[name] for name, done in self.done.items()
                   if self.counted[name])
        return past / (past + rest) if past else 0.0

    def text(self):
        """Return the counts, the time that is left and the postfix."""
        parts = []
        for name, done in self.done.items():
            left = self.left[name]
            parts.append(f'{done:,} {name}' if left is None else f'{done:,} of {done + left:,.0f} {name}')
        if rest := self.seconds_left():
            parts.append(f'{duration(rest)} left')
        return ', '.join([*parts, *filter(None, [self.postfix])])

    def show(self):
        """Redraw the bar, or print a line to stderr if it can be written."""
        share = self.share()
        if self.bar is None and sys.stderr is None:
            return
        if self.bar is None:
            percent = '' if share is None else f'{int(100 * share)} %: '
            warn(percent + self.text())
            return
        self.bar.n = share or 0.0
        self.bar.bar_format = '{desc}' if share is None else '{percentage:3.0f}%|{bar}| {desc}'
        self.bar.set_description_str(self.text())

    def set_postfix_str(self, text):
        """Set the text at the end."""
        self.postfix = text

    def close(self):
        """End the bar."""
        if self.bar is not None:
            self.show()
            self.bar.close()
