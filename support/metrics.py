"""The CSV of a run: it takes new columns at any time, and every row is on disk at once."""

import time
from pathlib import Path

from support.files import write_atomic


class MetricsLog:
    """A CSV that takes new columns at any time. `start_step`: rows after it are dropped (a resumed run)."""

    def __init__(self, path, start_step=0):
        self.path, self.rows, self.columns = Path(path), [], ['step', 'time']
        self.trackers = []  # functions (step, metrics) that get every row too
        if self.path.exists():
            self.rows = [row | {'step': int(row['step'])} for row in read_csv(self.path) if row['step'] <= start_step]
            for row in self.rows:
                self._add_columns(row)
        self.begin = time.time() - max((row['time'] for row in self.rows), default=0.0)
        self._rewrite()

    def _add_columns(self, row):
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
        row = {'step': int(step), 'time': round(time.time() - self.begin, 2),
               **{name: float(value) for name, value in metrics.items()}}
        self.rows.append(row)
        if self._add_columns(row):
            self._rewrite()
        else:
            try:
                with open(self.path, 'a') as file:
                    file.write(self._line(row) + '\n')
            except OSError as error:
                raise OSError(f'{self.path} cannot be written ({error.strerror}); free some space, then go on with '
                              '--resume') from error
        for track in self.trackers:
            track(row['step'], {name: row[name] for name in metrics})


def read_csv(path):
    """-> list of dicts of floats; empty cells are left out, and so is a last line that a kill cut short.

    Raises ValueError that names a line which is damaged otherwise.
    """
    header, *lines = Path(path).read_text(encoding='utf-8', errors='replace').split('\n')[:-1] or ['']
    columns, rows = header.split(','), []
    for number, line in enumerate(lines, 2):
        cells = line.split(',')
        try:
            rows.append({name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell})
        except ValueError:
            raise ValueError(f'{path}, line {number} is damaged: mend or delete it') from None
    return rows
