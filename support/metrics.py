"""CSV files of metrics."""

import time
from pathlib import Path

from support.files import write_atomic


class MetricsLog:
    """A CSV file of metrics. It accepts new columns at any time, and every row is on disk when `log` returns.
    """

    def __init__(self, path, start_step=0):
        """Open the file of a new run, or of one that is resumed at `start_step`: later rows are dropped."""
        self.path = Path(path)
        self.rows = []
        self.columns = ['step', 'time']
        self.trackers = []  # functions (step, metrics), called with every new row

        if self.path.exists():
            kept = [row for row in read_csv(self.path) if row['step'] <= start_step]
            self.rows = [row | {'step': int(row['step'])} for row in kept]
            for row in self.rows:
                self._add_columns(row)

        elapsed = max((row.get('time', 0.0) for row in self.rows), default=0.0)
        self.begin = time.time() - elapsed
        self._rewrite()

    def _add_columns(self, row):
        """Add the new columns of a row; return whether it has any."""
        new = [name for name in row if name not in self.columns]
        self.columns += new
        return bool(new)

    def _rewrite(self):
        lines = [','.join(self.columns), *(self._line(row) for row in self.rows)]
        write_atomic(self.path, lambda file: file.write(('\n'.join(lines) + '\n').encode()))

    def _line(self, row):
        return ','.join('' if row.get(name) is None else repr(row[name]) for name in self.columns)

    def log(self, step, metrics):
        """Add one row of metrics {name: number}; raise OSError if it cannot be written."""
        row = {'step': int(step), 'time': round(time.time() - self.begin, 2)}
        row |= {name: float(value) for name, value in metrics.items()}
        self.rows.append(row)
        try:
            if self._add_columns(row):
                self._rewrite()
            else:
                self._append(row)
        except OSError:
            del self.rows[-1]  # `rows` are those of the file
            raise

        for track in self.trackers:
            track(row['step'], {name: row[name] for name in metrics})

    def _append(self, row):
        try:
            with open(self.path, 'a') as file:
                file.write(self._line(row) + '\n')
        except OSError as error:
            raise OSError(f'{self.path} cannot be written ({error.strerror}); free some space, then continue '
                          'with --resume') from error


def read_csv(path):
    """Read a CSV of metrics -> list of dicts of floats, one per row.

    Empty cells are left out, and a last line that a kill cut short.

    Raises:
        ValueError: another line is damaged, or there is no column `step`; the message names it.
    """
    # a spreadsheet may begin the file with a byte-order mark
    text = Path(path).read_text(encoding='utf-8-sig', errors='replace')
    header, *lines = text.split('\n')[:-1] or ['']  # the text after the last line break is empty or cut short
    columns = header.split(',')
    if header and 'step' not in columns:
        raise ValueError(f'{path}: its first line has no column `step`; OPSO separates columns by commas, and '
                         'a spreadsheet may not')

    rows = []
    for number, line in enumerate(lines, 2):
        cells = line.split(',')
        try:
            row = {name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell}
            int(row['step'])  # neither missing nor infinite
        except (ValueError, KeyError, OverflowError):
            raise ValueError(f'{path}, line {number} is damaged: repair or remove the line') from None
        rows.append(row)
    return rows


def curve(rows, name):
    """Return the steps and the values of a column, tuples of floats; both are empty if no row has the column.

    Args:
        rows: as from `read_csv`.
        name: of the column.
    """
    points = [(row['step'], row[name]) for row in rows if name in row]
    return tuple(step for step, _ in points), tuple(value for _, value in points)
