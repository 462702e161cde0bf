"""Files: atomic writes, safe loading, one writer per folder; reports of losses that are not finite."""

import ast
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import offline_trainer
import online_trainer
from ogbench_utils import BUNDLED_NAME
from online_agent import OnlineAgent
from support import files
from support.files import CHECKPOINT_FORMAT, load_checkpoint, remove_leftovers, save_checkpoint, write_atomic
from support.flags import run_main
from support.locks import LOCK, OWNER, lock_owner, run_lock
from support.metrics import MetricsLog, read_csv
from trajectories import load_dataset

ROOT = Path(__file__).resolve().parent.parent
TINY = ['--d_model', '32', '--headdim', '16', '--d_state', '8', '--hidden_dim', '32',
        '--context_length', '20', '--transition_steps', '5', '--batch_size', '4', '--max_trajectories', '4']
fork = multiprocessing.get_context('fork') if hasattr(os, 'fork') else None


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, no_pictures, quick_labeler):
    """Make tmp_path the working directory and train quickly."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, main, *flags):
    """Return the error line of a command that must fail."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: main([*map(str, flags)]))
    stderr = capsys.readouterr().err
    lines = [line for line in stderr.splitlines() if line.startswith('error: ')]
    assert end.value.code == 2 and len(lines) == 1 and 'Traceback' not in stderr
    return lines[0]


# Atomic files


def saver(path, values):
    for value in values:
        save_checkpoint(path, {'kind': 'labeling', 'values': torch.full((300_000,), float(value))})


@pytest.mark.skipif(fork is None, reason='needs os.fork')
def test_save_checkpoint_survives_fifty_kills(folder):
    path, values = folder / 'last.pth', set()
    begin = time.monotonic()
    saver(path, range(5))
    longest = max(0.02, time.monotonic() - begin)  # a busy machine saves slowly
    for kill in range(50):
        child = fork.Process(target=saver, args=(path, range(1000 * kill, 1000 * kill + 1000)))
        child.start()
        temporary, deadline = path.with_name(f'last.pth.opso-tmp{child.pid}'), time.monotonic() + 10
        while not temporary.exists():  # a busy machine starts slowly
            assert time.monotonic() < deadline
        time.sleep(random.uniform(0.0, longest))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        data = load_checkpoint(path, 'labeling')['values']
        assert len(data) == 300_000 and (data == data[0]).all()
        values.add(float(data[0]))
    assert len(values) > 2
    remove_leftovers(folder)
    assert [file.name for file in folder.iterdir()] == ['last.pth']


def test_remove_leftovers_keeps_files_of_live_processes(folder):
    (folder / f'last.pth.opso-tmp{os.getppid()}').touch()
    remove_leftovers(folder)
    assert len(list(folder.iterdir())) == 1


def test_remove_leftovers_keeps_files_of_the_user(folder):
    names = ['notes.tmp', 'notes.tmp99999999', 'data.tmp4194000', '.opso-tmp1', 'a.opso-tmp4194000.npz']
    for name in names:
        (folder / name).touch()
    (folder / 'last.pth.opso-tmp4194000').touch()
    (folder / 'folder.opso-tmp4194000').mkdir()
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, 'folder.opso-tmp4194000'])


def test_write_atomic_keeps_the_old_file_if_the_disk_is_full(folder, monkeypatch):
    """The write fails half-way with ENOSPC."""
    save_checkpoint(folder / 'last.pth', {'kind': 'labeling', 'value': 1})

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:len(data) // 2])
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'open', lambda *args: Full(open(*args)), raising=False)  # noqa: SIM115
    with pytest.raises(OSError,
                       match=r'last.pth cannot be written \(No space left on device\), its last') as caught:
        save_checkpoint(folder / 'last.pth', {'kind': 'labeling', 'value': 2})
    assert '--resume' in str(caught.value)
    assert load_checkpoint(folder / 'last.pth')['value'] == 1 and len(list(folder.iterdir())) == 1
    with pytest.raises(OSError, match='cannot be written') as caught:
        write_atomic(folder / 'new.png', lambda file: file.write(b'12'))
    assert 'last good' not in str(caught.value)


def test_save_checkpoint_keeps_the_old_file_on_a_full_file_system(folder):
    """A file system of one megabyte holds one checkpoint, but not two."""
    mount = folder / 'small'
    mount.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1000k', 'tmpfs', mount],
                      capture_output=True).returncode:
        pytest.skip('mounting a tmpfs needs root')
    try:
        save_checkpoint(mount / 'last.pth', {'kind': 'labeling', 'value': torch.zeros(150_000)})
        with pytest.raises(OSError, match='No space left on device'):
            save_checkpoint(mount / 'last.pth', {'kind': 'labeling', 'value': torch.ones(150_000)})
        assert not load_checkpoint(mount / 'last.pth')['value'].any() and len(list(mount.iterdir())) == 1
    finally:
        subprocess.run(['umount', mount], check=True)


@pytest.mark.skipif(fork is None, reason='needs os.fork')
def test_training_that_cannot_write_ends_with_one_line_and_resumes(folder, capfd):
    """RLIMIT_FSIZE replaces a full disk."""
    flags = ['--dataset', BUNDLED_NAME, *TINY, '--num_updates', '6', '--val_interval', '2',
             '--save_dir', 'run', '--device', 'cpu']  # a fork cannot use CUDA
    offline_trainer.main([*flags, '--num_updates', '2'])
    before = (folder / 'run' / 'last.pth').read_bytes()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, -1))
        run_main(lambda: offline_trainer.main([*flags, '--resume']))

    child = fork.Process(target=limited)
    child.start()
    child.join()
    stderr = capfd.readouterr().err
    assert child.exitcode == 2
    assert 'cannot be written (File too large), its last good version is kept' in stderr
    assert (folder / 'run' / 'last.pth').read_bytes() == before
    offline_trainer.main([*flags, '--resume'])
    assert load_checkpoint('run/last.pth')['agent']['step'] == 6


@pytest.mark.parametrize('torn', ['3,1.0,0.2', '3', '3,1.0,0.25,', '', '2,7.'])
def test_metrics_log_drops_an_incomplete_last_line(folder, torn):
    path = folder / 'train.csv'
    log = MetricsLog(path)
    for step in (1, 2):
        log.log(step, {'loss': step / 3, 'other': 1})
    whole = path.read_text()
    path.write_text(whole + torn)
    assert [row['step'] for row in read_csv(path)] == [1, 2]
    again = MetricsLog(path, start_step=5)
    assert path.read_text() == whole
    again.log(3, {'loss': 0.5, 'late': 2})
    assert read_csv(path)[2].keys() == {'step', 'time', 'loss', 'late'}
    assert [row['loss'] for row in read_csv(path)] == [1 / 3, 2 / 3, 0.5]


def test_read_csv_names_a_damaged_line(folder):
    (folder / 'a.csv').write_text('step,loss\n1,2\n2,\0\0\n3,4\n')
    with pytest.raises(ValueError, match='a.csv, line 3 is damaged'):
        read_csv(folder / 'a.csv')


# Safe loading


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_load_checkpoint_runs_no_code(folder, capsys):
    proof = folder / 'hacked'
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()  # the payload works
    proof.unlink()
    torch.save({'format': CHECKPOINT_FORMAT, 'kind': 'offline', 'agent': Payload(proof)}, 'zip.pth')
    torch.save({'format': CHECKPOINT_FORMAT, 'agent': Payload(proof)}, 'old.pth',
               _use_new_zipfile_serialization=False)
    Path('plain.pth').write_bytes(pickle.dumps(Payload(proof)))
    for name in ('zip.pth', 'old.pth', 'plain.pth'):
        line = fails(capsys, online_trainer.main, '--offline_checkpoint', name)
        assert f'{name} is not a readable OPSO checkpoint' in line
        assert not proof.exists()


def test_all_loads_are_safe():
    names = ('*.py', '*/*.py', 'scripts/*/*.py')
    paths = [path for name in names for path in ROOT.glob(name)]
    count = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ''
            needed = {'torch.load': ('weights_only', True), 'np.load': ('allow_pickle', False)}.get(name)
            if needed:
                count += 1
                given = {word.arg: ast.literal_eval(word.value) for word in node.keywords
                         if word.arg == needed[0]}
                assert given == dict([needed]), f'{path.name}, line {node.lineno}: {name} without {needed}'
            elif name in ('pickle.load', 'pickle.loads'):
                assert path.name == 'test_files.py', path
    assert count > 3


def test_load_checkpoint_names_what_differs(folder, capsys):
    flags = ['--dataset', BUNDLED_NAME, *TINY, '--num_updates', '1', '--save_dir', 'run']
    offline_trainer.main(flags)
    good = load_checkpoint('run/last.pth')
    states = good['agent'] | {'observation_dim': 30}
    config = good['agent']['config']
    cases = [
        (good | {'format': 99}, ['format 99', f'reads {CHECKPOINT_FORMAT}']),
        (good | {'kind': 'online'}, ['online', 'offline']),
        ({'format': CHECKPOINT_FORMAT, 'kind': 'offline'}, ['agent', 'missing']),
        (good | {'agent': states}, ['30', '29']),
        (good | {'agent': good['agent'] | {'config': config | {'colour': 1}}}, ['colour']),
        (good | {'agent': good['agent'] | {'config': config | {'d_model': 64}}}, ['size', 'encoder']),
        (good | {'data': good['data'] | {'dataset': 'antmaze-large-navigate-v0'}},
         ['antmaze-large-navigate-v0', BUNDLED_NAME]),
    ]
    for content, words in cases:
        save_checkpoint('bad.pth', content)
        line = fails(capsys, online_trainer.main, '--dataset', BUNDLED_NAME,
                     '--offline_checkpoint', 'bad.pth',
                     '--num_envs', 1, '--max_steps', 20, '--random_steps', 20, '--initial_updates', 1)
        assert 'bad.pth' in line
        for word in words:
            assert word in line
    torch.save([1, 2], 'bad.pth')
    assert f'format list, this code reads {CHECKPOINT_FORMAT}' in fails(
        capsys, online_trainer.main, '--offline_checkpoint', 'bad.pth')
    Path('bad.pth').write_bytes(Path('run/last.pth').read_bytes()[:-5000])
    assert 'bad.pth is not a readable' in fails(capsys, online_trainer.main,
                                                '--offline_checkpoint', 'bad.pth')


# One process per folder


def hold(folder, seconds=30):
    with run_lock(folder):
        (folder / 'held').touch()
        time.sleep(seconds)


@pytest.fixture
def holder(folder):
    """A child that holds the lock of folder 'run'."""
    if fork is None:
        pytest.skip('needs os.fork')
    child = fork.Process(target=hold, args=(folder / 'run',))
    child.start()
    while not (folder / 'run' / 'held').exists():
        time.sleep(0.01)
    yield child
    child.kill()
    child.join()


def test_run_lock_names_the_process_that_holds_the_folder(folder, holder, capsys):
    line = fails(capsys, offline_trainer.main, '--dataset', BUNDLED_NAME, *TINY, '--num_updates', 1,
                 '--save_dir', 'run')
    assert f'in use by process {holder.pid} on ' in line and 'run.lock' in line and 'since 2' in line
    assert lock_owner(folder / 'run')['pid'] == holder.pid
    assert sorted(path.name for path in (folder / 'run').iterdir()) == [LOCK, 'held', OWNER]


def test_run_lock_is_free_after_its_process_is_killed(folder, holder):
    """The operating system frees the lock; the owner file of the killed process stays."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (folder / 'run' / OWNER).exists() and lock_owner(folder / 'run') is None
    with run_lock(folder / 'run'):
        assert json.loads((folder / 'run' / OWNER).read_text())['pid'] == os.getpid()
    assert not (folder / 'run' / OWNER).exists()


@pytest.mark.parametrize('content', ['', '{', '[]', '{"pid": 1}'])
def test_run_lock_ignores_stale_and_damaged_owner_files(folder, content):
    (folder / OWNER).write_text(content)
    assert lock_owner(folder) is None
    with run_lock(folder):
        assert json.loads((folder / OWNER).read_text())['pid'] == os.getpid()


def test_run_lock_respects_a_holder_without_owner_file(folder):
    in_use = pytest.raises(ValueError, match='in use by process .unknown.')
    with FileLock(folder / LOCK), in_use, run_lock(folder):
        pytest.fail('entered')


def test_run_lock_removes_empty_folders(folder):
    with run_lock(folder / 'a' / 'b'):
        assert (folder / 'a' / 'b' / OWNER).exists()
    assert not (folder / 'a').exists()


def racer(folder, start, results, finish):
    start.wait()
    try:
        with run_lock(folder):
            results.put(True)
            finish.wait()  # until all have tried
    except ValueError:
        results.put(False)


@pytest.mark.skipif(fork is None, reason='needs os.fork')
def test_run_lock_admits_one_of_many_processes(folder):
    for _ in range(5):
        (folder / OWNER).write_text('{}')
        start, results, finish = fork.Event(), fork.Queue(), fork.Event()
        children = [fork.Process(target=racer, args=(folder, start, results, finish)) for _ in range(6)]
        for child in children:
            child.start()
        time.sleep(0.05)
        start.set()
        outcomes = [results.get(timeout=20) for _ in children]
        finish.set()
        for child in children:
            child.join()
        assert sum(outcomes) == 1 and not (folder / OWNER).exists()


# Numbers that go wrong


def test_check_finite_stops_the_offline_run(folder, monkeypatch, capsys):
    flags = ['--dataset', BUNDLED_NAME, *TINY, '--num_updates', '9', '--val_interval', '2',
             '--save_dir', 'run']
    loss, batches = offline_trainer.OfflineAgent.state_loss, {}

    def infinite(self, latents, batch):
        value, info = loss(self, latents, batch)
        if self.step < 4 or not torch.is_grad_enabled():
            return value, info
        batches['bad'] = batch
        return value * torch.inf, {'state_loss': value * torch.inf}

    monkeypatch.setattr(offline_trainer.OfflineAgent, 'state_loss', infinite)
    line = fails(capsys, offline_trainer.main, *flags)
    path = (folder / 'run' / 'nonfinite_update5.npz').resolve()
    for word in ('state_loss is inf', 'update 5', str(path), str(folder / 'run' / 'last.pth')):
        assert word in line
    last = load_checkpoint('run/last.pth')['agent']
    assert last['step'] == 4 and all(torch.isfinite(value).all() for value in last['nets'].values())
    with np.load(path, allow_pickle=False) as dump:
        data = load_dataset(BUNDLED_NAME, max_trajectories=4, context_length=20, transition_steps=5)[0]
        goals = data.observations[dump['goal_rows']]
        assert dump['step'] == 5 and dump['rows'].shape == dump['proposer_goal_rows'].shape == (4, 20)
    np.testing.assert_array_equal(goals, batches['bad'].goals.cpu().numpy())
    monkeypatch.setattr(offline_trainer.OfflineAgent, 'state_loss', loss)
    offline_trainer.main([*flags, '--resume'])
    assert load_checkpoint('run/last.pth')['agent']['step'] == 9


def test_check_finite_stops_on_a_gradient(folder, monkeypatch, capsys):
    """The loss is finite, its gradient is not."""
    loss = offline_trainer.OfflineAgent.reward_loss

    def crooked(self, latents, batch):
        value, info = loss(self, latents, batch)
        return value + (value - value.detach()).abs().sqrt(), info

    monkeypatch.setattr(offline_trainer.OfflineAgent, 'reward_loss', crooked)
    line = fails(capsys, offline_trainer.main, '--dataset', BUNDLED_NAME, *TINY, '--num_updates', 3,
                 '--save_dir', 'run')
    assert 'grad_norm is ' in line and 'update 1;' in line and 'none yet' in line


def test_check_finite_stops_the_online_run(folder, monkeypatch, capsys):
    offline_trainer.main(['--dataset', BUNDLED_NAME, *TINY, '--num_updates', '1', '--save_dir', 'run'])
    loss = OnlineAgent.feature_decoder_loss

    def bad(self, batch):
        value = loss(self, batch)[0] * (torch.nan if self.step == 2 else 1)
        return value, {'feature_decoder_loss': value}

    monkeypatch.setattr(OnlineAgent, 'feature_decoder_loss', bad)
    line = fails(capsys, online_trainer.main, '--dataset', BUNDLED_NAME,
                 '--offline_checkpoint', 'run/last.pth',
                 '--num_envs', 2, '--random_steps', 40, '--max_steps', 40, '--batch_size', 1,
                 '--save_dir', 'online')
    assert 'feature_decoder_loss is nan at update 3' in line
    with np.load('online/nonfinite_update3.npz', allow_pickle=False) as dump:
        assert dump['rows'].shape == (20,)
