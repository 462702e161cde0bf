"""Progress of loops: a bar on a terminal; in a file or a pipe a plain line now and then."""

import contextlib
import sys
import time

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
        speed = f'{(self.n - self.initial) / (now - self.begin):.3g} per second'
        parts = [f'{self.name}: {self.format(self.n)}{total}', speed, *filter(None, [self.postfix])]
        with contextlib.suppress(OSError):
            print(', '.join(parts), file=sys.stderr, flush=True)

    def set_postfix_str(self, text):
        """Set the text at the end of the lines."""
        self.postfix = text

    def close(self):
        """End, without a line."""
