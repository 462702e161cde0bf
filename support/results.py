"""results/runs.csv: one row for each finished run, from which scripts/make_tables.py writes all tables."""

import csv
import dataclasses
import io
from pathlib import Path

from support.files import write_atomic
from support.locks import file_lock

TASKS = 5


@dataclasses.dataclass
class Run:
    """A row of runs.csv; its columns are these fields. An empty cell is None, or '' in a column of text."""

    experiment: str
    dataset: str
    seed: int
    commit: str  # of the code that ran
    offline_flags: str  # the method's flags on each command line; budget, paths and the like are left out
    simulator_flags: str
    online_flags: str
    evaluation_flags: str  # only what the checkpoint was not trained with
    offline_updates: int | None
    online_updates: int | None
    simulator_steps: int | None  # environment steps of scripts/label_with_simulator.py
    environment_steps: int | None  # all of them, the simulator's included
    labels_r2: float | None  # of held-out online steps, at the end of the run
    evaluation_seed: int
    episodes_per_task: int
    task1: float  # success, 0 to 1, as in all columns below
    task2: float
    task3: float
    task4: float
    task5: float
    success: float
    success_without_plan: float | None  # of the same checkpoint on the same episodes

    @property
    def key(self):
        """What a run is found by: a second run of the same key replaces the first."""
        return self.experiment, self.dataset, self.seed

    @property
    def flags(self):
        """All flags as on one command line."""
        parts = self.offline_flags, self.simulator_flags, self.online_flags, self.evaluation_flags
        return ' '.join(filter(None, parts))


def read_rows(path, row_class=Run):
    """Read a CSV file whose columns are the fields of a dataclass.

    Raises ValueError that names the file, and the line where there is one.
    """
    path = Path(path)
    with open(path, encoding='utf-8', newline='') as file:
        lines = list(csv.reader(file))
    columns = [field.name for field in dataclasses.fields(row_class)]
    if not lines or lines[0] != columns:
        raise ValueError(f'{path}: its columns must be {",".join(columns)}')

    rows = []
    for number, cells in enumerate(lines[1:], 2):
        try:
            pairs = zip(dataclasses.fields(row_class), cells, strict=True)
            rows.append(row_class(*(_parse(field.type, cell) for field, cell in pairs)))
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: {error}') from None
    return rows


def _parse(kind, cell):
    """Convert the text of a cell to the type of its field."""
    if kind is str:
        return cell
    if cell == '' and kind in (int | None, float | None):
        return None
    return int(cell) if kind in (int, int | None) else float(cell)


def write_rows(path, rows, row_class=Run):
    """Replace a CSV file by these rows, at once and as a whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([field.name for field in dataclasses.fields(row_class)])
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def add_run(path, run):
    """Add a run to runs.csv, in place of the one with its experiment, dataset and seed if there is one.

    Returns whether it replaced one.
    """
    # several runs may end at the same time
    with file_lock(path, waiting=lambda: None):
        rows = read_rows(path) if Path(path).is_file() else []
        others = [row for row in rows if row.key != run.key]
        write_rows(path, sorted([*others, run], key=lambda row: row.key))
    return len(others) < len(rows)


@dataclasses.dataclass
class Baseline:
    """A row of baselines.csv: an evaluation of another method on our data."""

    agent: str
    dataset: str
    machine: str
    batch_size: int
    width: int  # of the hidden layers
    updates: int
    label_steps: int  # random environment steps that the action labels were inferred from; 0: true actions
    episodes_per_task: int
    task1: float
    task2: float
    task3: float
    task4: float
    task5: float
    success: float
