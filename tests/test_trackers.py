"""TensorBoard and W&B, replaced by recorders: they log the rows of the CSV, and no run needs them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from support import trackers
from support.flags import run_main
from support.metrics import MetricsLog, read_csv

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def fakes(monkeypatch):
    """Replace both packages; return what they logged."""
    logged = SimpleNamespace(tensorboard=[], wandb=[], started=[], named=[])

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            logged.started.append(('tensorboard', folder, purge_step))

        def add_text(self, name, text):
            pass

        def add_scalar(self, name, value, step):
            logged.tensorboard.append((step, name, value))

        def flush(self):
            pass

    def init(**options):
        logged.started.append(('wandb', options['id'], options['resume']))
        logged.named.append([options[name] for name in ('project', 'group', 'tags')])
        return SimpleNamespace(define_metric=lambda *a, **k: None, log=logged.wandb.append)

    board, wandb = ModuleType('torch.utils.tensorboard'), ModuleType('wandb')
    board.SummaryWriter, wandb.init = SummaryWriter, init
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', board)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.setattr(trackers, 'check_trackers', lambda names: None)
    return logged


def test_trackers_log_the_rows_of_the_csv(fakes, tmp_path):
    log = MetricsLog(tmp_path / 'train.csv')
    log.trackers = trackers.open_trackers(['tensorboard', 'wandb'], tmp_path, 'name', {'seed': 0}, 0)
    log.log(5, {'training/loss': 2})
    log.log(9, {'training/loss': 1.5, 'evaluation/overall_success': 0.5})
    log.log(12, {'training/loss': 1.0})
    rows = [{name: value for name, value in row.items() if name != 'time'}
            for row in read_csv(tmp_path / 'train.csv')]
    assert fakes.wandb == rows
    assert fakes.tensorboard == [(row['step'], name, row[name]) for row in rows for name in row
                                 if name != 'step']


def test_trackers_continue_the_curve_of_a_resumed_run(fakes, tmp_path):
    for first_step in (0, 500, 0):  # a new run, resumed, another new run in the same folder
        trackers.open_trackers(['tensorboard', 'wandb'], tmp_path, 'name', {}, first_step)
    boards, runs = ([entry for entry in fakes.started if entry[0] == name]
                    for name in ('tensorboard', 'wandb'))
    assert [purge for _, _, purge in boards] == [None, 501, None]
    assert runs[0] == runs[1] != runs[2] and runs[0][2] == 'allow'


def test_project_group_and_tags_come_from_flags_or_the_variables_of_wandb(fakes, tmp_path, monkeypatch):
    for name in ('WANDB_PROJECT', 'WANDB_RUN_GROUP', 'WANDB_TAGS'):
        monkeypatch.delenv(name, raising=False)
    flags = {'wandb_project': 'ants', 'wandb_group': 'k', 'wandb_tags': 'large, k25'}
    trackers.open_trackers(['wandb'], tmp_path, 'name', flags, 0)
    trackers.open_trackers(['wandb'], tmp_path, 'name', dict.fromkeys(flags, ''), 0)
    monkeypatch.setenv('WANDB_PROJECT', 'robots')
    trackers.open_trackers(['wandb'], tmp_path, 'name', {}, 0)
    assert fakes.named == [['ants', 'k', ['large', 'k25']], ['opso', None, None], ['robots', None, None]]


def test_missing_tracker_package_is_one_line_before_data_are_loaded(tmp_path, monkeypatch, capsys):
    import offline_trainer
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(offline_trainer, 'load_dataset',
                        lambda *args, **options: pytest.fail('data were loaded'))
    for name in ('tensorboard', 'wandb'):
        with pytest.raises(SystemExit, match='2'):
            run_main(lambda name=name: offline_trainer.main([f'--{name}']))
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and f'--{name}' in error and f'pip install {name}' in error
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_fails_costs_a_warning_only(fakes, tmp_path, capsys, monkeypatch):
    log = MetricsLog(tmp_path / 'train.csv')
    log.trackers = trackers.open_trackers(['wandb', 'tensorboard'], tmp_path, 'name', {'seed': 0}, 0)
    log.log(5, {'training/loss': 2})
    writer = sys.modules['torch.utils.tensorboard'].SummaryWriter
    monkeypatch.setattr(writer, 'flush', lambda self: 1 / 0)
    log.log(9, {'training/loss': 1})
    log.log(12, {'training/loss': 1})
    assert [row['step'] for row in read_csv(tmp_path / 'train.csv')] == [5, 9, 12]
    assert capsys.readouterr().err == ('warning: --tensorboard logs no more (ZeroDivisionError: division by '
                                       'zero); the CSV has all rows\n')
    assert [step for step, _, _ in fakes.tensorboard] == [5, 9]


def test_broken_tracker_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, 'check_trackers', lambda names: None)
    monkeypatch.setitem(sys.modules, 'wandb', None)  # makes its import fail
    with pytest.raises(ValueError, match='wandb cannot be imported'):
        trackers.open_trackers(['wandb'], tmp_path, 'name', {}, 0)


def test_trackers_are_imported_on_request_only():
    code = ('import sys, evaluate, offline_trainer, online_trainer; '
            'names = {"wandb", "tensorboard", "matplotlib.pyplot"}; '
            'assert not names & set(sys.modules), sorted(sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
