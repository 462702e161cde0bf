"""The CSV of a run: it takes new columns at any time, and every row is on disk at once."""

import time
from pathlib import Path

from support.files import write_atomic


class MetricsLog:
    """A CSV file that takes new columns at any time.

    When a run is resumed, rows after `start_step` are dropped from the file that is there.
    """

    def __init__(self, path, start_step=0):
        self.path = Path(path)
        self.rows = []
        self.columns = ['step', 'time']
        self.trackers = []  # functions (step, metrics), called with every new row

        if self.path.exists():
            kept = [row for row in read_csv(self.path) if row['step'] <= start_step]
            self.rows = [row | {'step': int(row['step'])} for row in kept]
            for row in self.rows:
                self._add_columns(row)

        elapsed = max((row['time'] for row in self.rows), default=0.0)
        self.begin = time.time() - elapsed
        self._rewrite()

    def _add_columns(self, row):
        """-> whether `row` brought new columns."""
        new = [name for name in row if name not in self.columns]
        self.columns += new
        return bool(new)

    def _rewrite(self):
        lines = [','.join(self.columns), *(self._line(row) for row in self.rows)]
        write_atomic(self.path, lambda file: file.write(('\n'.join(lines) + '\n').encode()))

    def _line(self, row):
        return ','.join('' if row.get(name) is None else repr(row[name]) for name in self.columns)

    def log(self, step, metrics):
        """Add one row of numbers, on disk when this returns. Raises OSError where it cannot be written."""
        row = {'step': int(step), 'time': round(time.time() - self.begin, 2)}
        row |= {name: float(value) for name, value in metrics.items()}
        self.rows.append(row)

        if self._add_columns(row):
            self._rewrite()
        else:
            self._append(row)

        for track in self.trackers:
            track(row['step'], {name: row[name] for name in metrics})

    def _append(self, row):
        try:
            with open(self.path, 'a') as file:
                file.write(self._line(row) + '\n')
        except OSError as error:
            raise OSError(f'{self.path} cannot be written ({error.strerror}); free some space, then go on with '
                          '--resume') from error


def read_csv(path):
    """-> list of dicts of floats, one per row; empty cells are left out, and so is a last line that a kill cut short.

    Raises ValueError that names a line which is damaged otherwise.
    """
    text = Path(path).read_text(encoding='utf-8', errors='replace')
    header, *lines = text.split('\n')[:-1] or ['']  # what follows the last line break is empty or cut short
    columns = header.split(',')

    rows = []
    for number, line in enumerate(lines, 2):
        cells = line.split(',')
        try:
            rows.append({name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell})
        except ValueError:
            raise ValueError(f'{path}, line {number} is damaged: mend or delete it') from None
    return rows


def curve(rows, name):
    """The column `name` of rows as `read_csv` returns them -> (steps, values), tuples of floats of the same length;
    both empty where no row has the column."""
    points = [(row['step'], row[name]) for row in rows if name in row]
    return tuple(step for step, _ in points), tuple(value for _, value in points)
