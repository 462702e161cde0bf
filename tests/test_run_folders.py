"""Run folders: nothing in them is overwritten or deleted unasked, and signals end a run saved."""

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from support import files, locks, runs, trackers
from support.files import save_checkpoint
from support.flags import parse_flags, run_main
from support.locks import LOCK, OWNER, run_lock
from support.metrics import MetricsLog, read_csv
from support.npz import load_arrays
from support.results import read_json, read_rows
from support.runs import RESUME_KEYS, RunConfig, Stop, git_commit, open_run, write_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Make tmp_path the working directory; return the folder of a run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('OMP_NUM_THREADS')
    return tmp_path / 'run'


def begin(kind='offline', log='train.csv', **flags):
    """Open a run in the folder 'run', and log its first rows."""
    config = RunConfig(save_dir='run', **flags)
    with open_run(kind, 'trainer.py', config) as run:
        return run, run.start_logging(log, 0, 'data')


def checkpoint(kind, **changes):
    """Return the content of a checkpoint that --resume can continue."""
    values = {dict: {}, str: '', int: 1, float: 0.5, list: [], torch.Tensor: torch.zeros(1)}
    content = {name: values[types[0] if isinstance(types, tuple) else types]
               for name, types in RESUME_KEYS[kind].items()}
    data = {'dataset': 'd', 'path': 'p', 'max_trajectories': 0, 'fingerprint': 'f', 'observation_model': {}}
    return {'kind': kind, 'agent': {}, 'data': data, 'dataset': 'd', **content, **changes}


def write(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        path = folder / name.replace('__', '.')
        save_checkpoint(path, content) if isinstance(content, dict) else path.write_text(content)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (LOCK, OWNER)}


# Results of others


@pytest.mark.parametrize('name, content', [
    ('last.pth', 'anything'), ('best_model.pth', 'anything'), ('actions.npz', 'anything'),
    ('train.csv', 'step,loss\n1,2\n'), ('updates.csv', 'step\n1\n'), ('config.json', '{"mine": 1}'),
    ('config.json', 'not json'),
])
def test_save_dir_with_results_but_without_config_is_refused(folder, name, content):
    folder.mkdir()
    (folder / name).write_text(content)
    before = snapshot(folder)
    with pytest.raises(ValueError, match=f'holds a run already \\({name}\\): add --resume, or name another'):
        begin()
    assert snapshot(folder) == before


def test_run_that_failed_before_its_first_step_does_not_block_the_command(folder):
    begin()
    assert {'config.json', 'train.csv'} <= {path.name for path in folder.iterdir()}
    _, log = begin()
    log.log(1, {'loss': 2})
    with pytest.raises(ValueError, match='holds a run already'):
        begin()


def test_a_login_that_fails_leaves_no_run(folder, monkeypatch):
    class UsageError(Exception):
        """Neither a ValueError nor an OSError, as wandb's own."""

    def init(**_):
        raise UsageError('No API key configured.\nUse `wandb login` to log in.')

    wandb = ModuleType('wandb')
    wandb.init = init
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.setattr(trackers, 'check_trackers', lambda names: None)
    monkeypatch.setattr(runs, 'check_trackers', lambda names: None)
    for _ in range(2):
        with pytest.raises(ValueError, match=r'--wandb cannot start \(No API key configured.\): wandb login'):
            begin(wandb=True)
        assert not (folder / 'config.json').exists()
    begin()


def test_default_folder_is_another_one_if_the_first_has_results(folder):
    def default():
        with open_run('offline', 'trainer.py', RunConfig(dataset='d')) as run:
            return run.start_logging('train.csv', 0, 'data')

    logs = [default(), default()]  # the first one made no step
    logs[1].log(1, {})
    logs.append(default())
    assert [log.path.parent.name for log in logs] == ['seed0', 'seed0', 'seed0-run2']


@pytest.mark.parametrize('kind, contents, found', [
    ('offline', {'best_model__pth': 'anything', 'train__csv': 'step,time\n1,2\n'}, 'best_model.pth'),
    ('offline', {'train__csv': 'step,time,validation/total_loss\n1,2,3\n'}, 'train.csv'),
    ('online', {'best_model__pth': 'anything'}, 'best_model.pth'),
    ('online', {'online__csv': 'step,time,evaluation/overall_success\n1,2,3\n'}, 'online.csv'),
    ('online', {'online__csv': 'step,time\n1,2\n3,4\n'}, 'online.csv'),
    ('labeling', {'labeling__csv': 'step,time\n1,2\n3,4\n'}, 'labeling.csv'),
    ('labeling', {'actions__npz': 'anything'}, 'actions.npz'),
])
def test_resume_without_last_pth_is_refused_if_one_was_saved(folder, kind, contents, found):
    write(folder, **contents)
    write_config(folder, RunConfig())
    before = snapshot(folder)
    with pytest.raises(FileNotFoundError, match=f'has {found}, but last.pth is missing: put it back') as caught:
        begin(kind, resume='yes')
    assert ('copy best_model.pth' in str(caught.value)) == (kind == 'offline' and found == 'best_model.pth')
    assert snapshot(folder) == before


@pytest.mark.parametrize('contents', [{}, {'train__csv': 'step,time,training/loss\n1,2,3\n'},
                                      {'updates__csv': 'step,time\n1,2\n3,4\n'}])
def test_resume_of_a_run_that_was_killed_before_its_first_save_begins_anew(folder, contents):
    write(folder, **contents)
    write_config(folder, RunConfig())
    run, log = begin(resume='yes')
    assert run.saved is None and log.rows == []


def test_resume_auto_begins_where_there_is_nothing_and_resumes_where_there_is_a_run(folder):
    with pytest.raises(FileNotFoundError, match='no run in .*run, .*--resume auto begins one'):
        begin(resume='yes')
    run, log = begin(resume='auto')
    assert run.saved is None
    log.log(1, {'loss': 2.0})
    run.save({'rng': {}, 'best': 0.5, 'infos': [], 'agent': {}, 'data': {
        'dataset': 'd', 'path': 'p', 'max_trajectories': 0, 'fingerprint': 'f', 'observation_model': {}}})
    run, log = begin(resume='auto')
    assert run.saved['best'] == 0.5
    (folder / 'last.pth').unlink()
    with pytest.raises(FileNotFoundError, match='last.pth is missing'):
        write(folder, best_model__pth='anything')
        begin(resume='auto')


def test_resume_auto_without_a_folder_takes_the_newest(folder):
    def default(**flags):
        with open_run('offline', 'trainer.py', RunConfig(dataset='d', **flags)) as run:
            return run.folder.name

    assert default(resume='auto') == 'seed0'
    for name in ('seed0', 'seed0-run2'):
        (folder.parent / 'offline_checkpoints' / 'd' / name).mkdir(parents=True, exist_ok=True)
        write_config(folder.parent / 'offline_checkpoints' / 'd' / name, RunConfig())
    assert default(resume='auto') == 'seed0-run2'


def test_resume_of_an_evaluation_checkpoint_is_one_line(folder):
    """The best_model.pth of an online run has no replay; last.pth has."""
    content = checkpoint('online', flags={})
    write(folder, last__pth=content)
    with pytest.raises(ValueError, match='needs the data'):  # it is accepted until the data are compared
        begin('online', resume='yes')
    for name in ('replay', 'collector', 'rng', 'best', 'round'):
        del content[name]
    write(folder, last__pth=content)
    with pytest.raises(ValueError, match='last.pth cannot be resumed, since replay, collector, rng, best, round are'):
        begin('online', resume='yes')


@pytest.mark.parametrize('kind', RESUME_KEYS)
def test_wrong_types_in_last_pth_are_one_line(folder, kind):
    for name in RESUME_KEYS[kind]:
        write(folder, last__pth=checkpoint(kind, **{name: (1, 2)}))
        with pytest.raises(ValueError, match=f'last.pth: its {name} is of type tuple'):
            begin(kind, resume='yes')


def test_forged_generators_are_one_line(folder):
    flags = vars(RunConfig(save_dir='run', resume='yes'))
    write(folder, last__pth=checkpoint('offline', flags=flags, fingerprint='data', random={'python': [3]}))
    with pytest.raises(ValueError, match='last.pth: '):
        begin(resume='yes')


# Leftovers


def test_leftovers_are_removed_from_run_folders_only(folder):
    names = ['last.pth.opso-tmp4194000', 'notes.tmp99999999', 'data.tmp4194000']
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    begin()
    assert set(names) <= {path.name for path in folder.iterdir()}
    begin(resume='yes')
    assert {path.name for path in folder.iterdir()} & set(names) == set(names[1:])


def test_full_disk_at_the_start_names_the_file_and_leaves_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match=r'run.lock cannot be written \(No space left on device\)'):
        begin()
    assert not folder.exists()
    monkeypatch.undo()
    monkeypatch.setattr(locks.FileLock, 'acquire', full)
    with pytest.raises(OSError, match=r'\.lock cannot be written \(No space left on device\)'):
        begin()
    assert not folder.exists()


def test_control_characters_of_run_lock_are_not_printed(folder):
    with run_lock(folder):
        owner = {'pid': 1, 'host': 'a\x1b[2Jb', 'since': 'x\ny'}
        (folder / OWNER).write_text(json.dumps(owner))
        with pytest.raises(ValueError, match=r'process 1 on a\?\[2Jb since x\?y \(run.lock\)'), run_lock(folder):
            pass


# Git


@pytest.mark.parametrize('script', [None, 'exit 128', 'echo fatal >&2; exit 1', 'sleep 60', 'printf "\\377"'])
def test_commit_is_none_without_a_working_git(tmp_path, monkeypatch, script):
    assert git_commit() is None or len(git_commit()) == 40
    monkeypatch.setattr(runs, 'GIT_SECONDS', 0.3)
    monkeypatch.setenv('PATH', str(tmp_path))
    if script:
        (tmp_path / 'git').write_text(f'#!/bin/sh\n{script.replace("sleep", "/bin/sleep")}\n')
        (tmp_path / 'git').chmod(0o755)
    assert git_commit() is None


# Signals


def names_of_signals():
    return [name for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2') if hasattr(signal, name)]


@pytest.mark.parametrize('name', names_of_signals())
def test_signals_stop_a_run_and_print_the_command_that_resumes(folder, name, capsys):
    number = getattr(signal, name)
    with pytest.raises(SystemExit) as end, open_run('offline', 'trainer.py', RunConfig(save_dir='run')) as run:
        run.start_logging('train.csv', 0, 'data')
        os.kill(os.getpid(), number)
        assert run.stop.signal == number
        if name not in ('SIGINT', 'SIGTERM'):
            os.kill(os.getpid(), number)  # a terminal sends SIGHUP twice; a second Ctrl-C would end the process
        run.stop.check()
    assert end.value.code == 128 + number
    assert 'stopped; continue with:' in capsys.readouterr().out and (folder / 'config.json').exists()


@pytest.mark.skipif(not hasattr(signal, 'SIGHUP'), reason='needs SIGHUP')
def test_ignored_hangup_stays_ignored():
    """As under `nohup`."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
def test_closed_terminal_does_not_stop_the_save(tmp_path):
    """A write to a closed terminal fails; the run saves all the same."""
    import pty
    pid, terminal = pty.fork()
    if not pid:
        try:
            with Stop() as stop:
                (tmp_path / 'ready').touch()
                while not stop.signal:
                    signal.pause()
                os.write(2, b'progress')
                (tmp_path / 'saved').touch()
        finally:
            os._exit(0)
    while not (tmp_path / 'ready').exists():
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    assert (tmp_path / 'saved').exists()


# Names


def test_config_json_and_trackers_name_the_own_robot(folder):
    run, _ = begin(env='robot:make', dataset_path='robot.npz')
    assert run.flags['dataset'] == 'robot:make'
    assert json.loads((folder / 'config.json').read_text())['flags']['dataset'] == 'robot:make'


# Tables


def test_csv_of_a_spreadsheet(tmp_path):
    path = tmp_path / 'train.csv'
    path.write_bytes(b'\xef\xbb\xbfstep,time,loss\r\n1,0.5,2\r\n')
    assert read_csv(path) == [{'step': 1.0, 'time': 0.5, 'loss': 2.0}]
    assert MetricsLog(path, start_step=1).rows == [{'step': 1, 'time': 0.5, 'loss': 2.0}]
    for text in ('step;time;loss\n1;0,5;2\n', '\0\0\n', 'time,loss\n1,2\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match='train.csv: its first line has no column `step`'):
            read_csv(path)
    for row in (',1,2', 'nan,1,2', 'inf,1,2', '1,2'):
        path.write_text(f'step,time,loss\n{row}\n')
        with pytest.raises(ValueError, match='train.csv, line 2 is damaged'):
            read_csv(path)


@pytest.mark.parametrize('content', [b'\xff\xfe\0', b'experiment\0,\n', b'{', b'[]', b'[' * 100_000])
def test_damaged_results_are_one_line(tmp_path, content):
    path = tmp_path / 'runs.csv'
    path.write_bytes(content)
    for read in (read_rows, read_json):
        with pytest.raises(ValueError, match='runs.csv') as caught:
            read(path)
        assert '\n' not in str(caught.value)


# python -OO


def test_scripts_work_without_docstrings(capsys):
    """`python -OO` removes them."""
    with pytest.raises(SystemExit, match='0'):
        parse_flags(None, RunConfig, argv=['--help'])
    assert '--seed' in capsys.readouterr().out
    for path in [*ROOT.glob('*.py'), *ROOT.glob('scripts/**/*.py'), *ROOT.glob('support/*.py')]:
        assert '__doc__.' not in path.read_text(encoding='utf-8'), path


# npz files


def test_damaged_npz_is_one_line(tmp_path):
    path = tmp_path / 'expert.npz'
    np.savez(path, w1=np.zeros((3, 3)))
    whole = path.read_bytes()
    assert load_arrays(path, ['w1'])['w1'].shape == (3, 3) and load_arrays(path).keys() == {'w1'}
    changed = bytearray(whole)
    changed[whole.index(b'NUMPY') + 130] ^= 1
    for content in (b'', whole[:-30], changed, b'\0' * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='expert.npz: ') as caught:
            load_arrays(path, ['w1'])
        assert '\n' not in str(caught.value)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match='no `w2` in it, only `w1`; use another file'):
        load_arrays(path, ['w2'])
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / 'none.npz')


def test_errors_end_with_one_line(folder, capsys):
    folder.mkdir()
    (folder / 'last.pth').touch()
    with pytest.raises(SystemExit, match='2'):
        run_main(lambda: begin(resume='yes'))
    assert capsys.readouterr().err.count('\n') == 1
