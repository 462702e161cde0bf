"""results/runs.csv: one row for each finished run, from which scripts/make_tables.py writes all tables."""

import csv
import dataclasses
import io
import json
import shlex
from pathlib import Path

from support.files import write_atomic
from support.locks import file_lock

TASKS = 5
DIGITS = 4  # of the fractions in a file, after the point
# flags that are no part of the method: names, paths, machine, length, logging, evaluation in training
BUDGET = {
    'dataset', 'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint', 'save_dir', 'resume', 'seed',
    'device', 'num_updates', 'num_epochs', 'max_steps', 'max_episodes', 'log_interval', 'val_interval',
    'eval_interval', 'eval_episodes', 'final_eval_episodes', 'maze_figures', 'no_maze_figures', 'format',
    'video', 'tensorboard', 'wandb', 'wandb_project', 'wandb_group', 'wandb_tags', 'mamba_backend',
}


@dataclasses.dataclass
class Run:
    """A row of runs.csv, whose columns are these fields. An empty cell is None, or '' in a column of text."""

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
    environment_steps: int | None  # all, including those of the simulator
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
        """Return what identifies a run: a second run with the same key replaces the first."""
        return self.experiment, self.dataset, self.seed

    @property
    def flags(self):
        """Return all flags as on one command line."""
        parts = self.offline_flags, self.simulator_flags, self.online_flags, self.evaluation_flags
        return ' '.join(filter(None, parts))


def read_rows(path, row_class=Run):
    """Read a CSV file whose columns are the fields of a dataclass.

    Raises:
        ValueError: names the file, and the line if it concerns one line.
    """
    path = Path(path)
    try:
        # a spreadsheet may begin the file with a byte-order mark
        with open(path, encoding='utf-8-sig', newline='') as file:
            lines = list(csv.reader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None
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
    """Replace a CSV file by these rows atomically, with fractions rounded to `DIGITS` digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([field.name for field in dataclasses.fields(row_class)])
    for row in rows:
        cells = dataclasses.astuple(row)
        writer.writerow([round(cell, DIGITS) if isinstance(cell, float) else cell for cell in cells])
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def add_run(path, run):
    """Add a row to a CSV file such as runs.csv, in place of the one with its `key` if there is one.

    Args:
        run: dataclass whose fields are the columns.

    Returns:
        whether it replaced one.
    """
    # several runs may end at the same time
    with file_lock(path, waiting=lambda: None):
        rows = read_rows(path, type(run)) if Path(path).is_file() else []
        others = [row for row in rows if row.key != run.key]
        write_rows(path, sorted([*others, run], key=lambda row: row.key), type(run))
    return len(others) < len(rows)


def read_json(path):
    """Read a JSON object.

    Raises:
        ValueError: names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8-sig'))
    except FileNotFoundError:
        raise ValueError(f'{path} does not exist') from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} is damaged: not an object')
    return content


# ------------------------------------------------------------------------------ flags
def read_args_file(path):
    """Return the words of a file of flags: quotes as in a shell, comments after #.

    Raises:
        ValueError: names the file.
    """
    try:
        return shlex.split(Path(path).read_text(encoding='utf-8'), comments=True)
    except OSError:
        raise ValueError(f'{path}: no such file of flags') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def split_flags(words):
    """Return [(name of a flag, its words), ...]; words before the first flag are dropped."""
    flags = []
    for word in words:
        if word.startswith('--'):
            flags.append((word[2:].split('=')[0].replace('-', '_'), [word]))
        elif flags:
            flags[-1][1].append(word)
    return flags


def method_flags(argv, root):
    """Return the method's flags of a command line as one string.

    Files of flags (`@file`, relative to `root`) are replaced by their content; `--actions_path` loses its
    folder.
    """
    words = []
    for word in argv[1:]:
        words += read_args_file(Path(root, word[1:])) if word.startswith('@') else [word]

    method = []
    for name, own in split_flags(words):
        if name == 'actions_path':
            own = [own[0].split('=')[0], Path(own[-1].split('=')[-1]).name]
        if name not in BUDGET:
            method += own
    return shlex.join(method)


# ------------------------------------------------------------------------------ any robot
@dataclasses.dataclass
class AnyRobotRun:
    """A row of any_robot.csv: a run of one case, before or after the code supported it."""

    section: str  # of the figure
    case: str  # row of the figure
    version: str  # before or after
    seed: int | None
    success: float
    episodes: int | None
    environment_steps: int | None
    commit: str

    @property
    def key(self):
        """Return what identifies a run: a second run with the same key replaces the first."""
        return self.section, self.case, self.version, -1 if self.seed is None else self.seed


# ------------------------------------------------------------------------------ baselines
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
