"""Runs that are stopped or killed anywhere and resumed end like uninterrupted ones, to the bit.

Trainings run in forked children, which saves their imports.
"""

import os
import random
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from child_process import end_with

import offline_trainer
import online_trainer
from figures import pictures
from labeling.labeler import Labeler
from ogbench_utils import BUNDLED_NAME
from support.files import load_checkpoint
from support.flags import run_main
from support.metrics import MetricsLog, read_csv
from support.npz import load_trajectories

if not hasattr(os, 'fork'):
    pytest.skip('needs os.fork', allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 '
                      '--transition_steps 5 --batch_size 4 --num_updates 40 --val_interval 6 '
                      '--log_interval 4')
ONLINE = shlex.split('--idm_hidden_dim 32 --batch_size 4 --num_envs 3 --random_steps 90 '
                     '--initial_updates 12 --max_steps 450 --update_ratio 0.2 --eval_interval 150 '
                     '--eval_episodes 1 --final_eval_episodes 2')


@pytest.fixture(scope='module')
def data_path(tmp_path_factory):
    """Four trajectories of 200 states of the bundled set."""
    path = tmp_path_factory.mktemp('data') / 'slice.npz'
    bundled = ROOT / 'datasets' / f'{BUNDLED_NAME}.npz'
    observations = load_trajectories(bundled, 4)[0].reshape(4, -1, 29)[:, :200].reshape(-1, 29)
    np.savez(path, observations=observations, terminals=np.arange(800) % 200 == 199)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path, short_episodes, no_pictures):
    """Train quickly in tmp_path; curves are empty files."""
    monkeypatch.chdir(tmp_path)
    for script in (offline_trainer, online_trainer):
        monkeypatch.setattr(script, 'plot_curves',
                            lambda curves, panels, path, _: path.with_name('curves.png').touch())


@pytest.fixture(scope='module', autouse=True)
def short_log_interval():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_trainer, 'LOG_INTERVAL', 4)
        yield


@pytest.fixture(scope='module', autouse=True)
def quick_labeler(fit_quickly):
    """Fit the labeler with 2 updates of its kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeler, 'fit', fit_quickly)
        yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data_path, make_short_env, quick_labeler):
    """Uninterrupted runs: {trainer: (flags, folder)}."""
    folder, runs = tmp_path_factory.mktemp('whole'), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_trainer, 'make_env', make_short_env)
        patch.setattr(online_trainer, 'draw_evaluation', lambda *_: None)
        patch.setattr(pictures, 'draw_agent', lambda *_: None)
        for script in (offline_trainer, online_trainer):
            patch.setattr(script, 'plot_curves', lambda *_: None)
        flags = {offline_trainer: [*OFFLINE, '--dataset_path', str(data_path)],
                 online_trainer: [*ONLINE, '--offline_checkpoint', str(folder / 'offline' / 'last.pth')]}
        for script, name in ((offline_trainer, 'offline'), (online_trainer, 'online')):
            script.main([*flags[script], '--save_dir', str(folder / name)])
            runs[script] = flags[script], folder / name
    return runs


def start(script, flags):
    """Run a trainer's main in a forked child; return its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    end_with(lambda: run_main(lambda: script.main([*flags])))


def ended(pid, seconds=0.0):
    """Wait up to `seconds` for the exit code, which is negative for a signal; None if the child still runs.
    """
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def timeless(path):
    return [{name: value for name, value in row.items() if not name.startswith('time')}
            for row in read_csv(path)]


def assert_same_run(script, whole, folder, assert_same):
    reference = whole[script][1]
    for name in ('last.pth', 'best_model.pth'):
        one, other = load_checkpoint(reference / name), load_checkpoint(folder / name)
        one['flags'] = other['flags'] = None
        assert_same(one, other, name)
    logs = {offline_trainer: ['train.csv'], online_trainer: ['online.csv', 'updates.csv']}[script]
    for csv in logs:
        assert timeless(reference / csv) == timeless(folder / csv) != []
    assert not list(folder.glob('*-tmp*')) and not (folder / 'run.lock').exists()


@pytest.mark.parametrize('script', [offline_trainer, online_trainer])
def test_killed_run_resumes_to_the_bit(script, whole, tmp_path, assert_same):
    """After six SIGKILLs at random moments the result equals that of the uninterrupted run."""
    folder, kills, codes = tmp_path / 'run', 0, []
    seconds = {offline_trainer: 0.8, online_trainer: 1.5}[script]
    while not codes:
        resume = ['--resume'] if (folder / 'config.json').exists() else []
        pid = start(script, [*whole[script][0], '--save_dir', str(folder), *resume])
        code = ended(pid, random.uniform(0, seconds) if kills < 6 else 200)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
        else:
            codes.append(code)
    print(f'{kills} kills')
    assert codes == [0] and kills
    assert_same_run(script, whole, folder, assert_same)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('script', [offline_trainer, online_trainer])
def test_stopped_run_resumes_to_the_bit(script, number, whole, tmp_path, assert_same, capfd):
    """After three signals at random moments; each stop saves, draws, and prints the command that resumes."""
    folder, flags = tmp_path / 'run', whole[script][0]
    command, stops = [*flags, '--save_dir', str(folder)], 0
    for _ in range(3):
        pid = start(script, command)
        code = None
        while code is None and not ((folder / 'run.lock').exists() and (folder / 'config.json').exists()):
            code = ended(pid, 0.002)  # an earlier signal prints 'stopped' only
        if code is None:
            code = ended(pid, random.uniform(0, 0.4))
        if code is None:
            os.kill(pid, number)
            code = ended(pid, 100)
        if code == 0:
            break
        output = capfd.readouterr().out
        assert code == 128 + number and 'stopped; continue with:\npython ' in output
        assert script is online_trainer or (folder / 'last.pth').exists()
        assert script is online_trainer or (folder / 'curves.png').exists()
        program, *command = shlex.split(output.splitlines()[-1])[1:]
        assert Path(program).resolve() == Path(script.__file__).resolve() and command[-1] == '--resume'
        assert not (folder / 'run.lock').exists()
        stops += 1
    assert stops and (code == 0 or ended(start(script, command), 200) == 0)
    assert_same_run(script, whole, folder, assert_same)


def test_stop_between_updates_of_a_round_loses_none(whole, tmp_path, monkeypatch, assert_same):
    """A stop at every update of the first two rounds in turn, and in the evaluation after them."""
    flags, folder = whole[online_trainer][0], tmp_path / 'run'
    flags = [*flags, '--initial_updates', '4', '--max_steps', '180']
    online_trainer.main([*flags, '--save_dir', str(tmp_path / 'whole')])
    update, steps = online_trainer.OnlineAgent.update, []

    def stop_now(self, *arguments):
        steps.append(self.step)
        os.kill(os.getpid(), signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(online_trainer.OnlineAgent, 'update', stop_now)
    for number in range(1, 8):
        with pytest.raises(SystemExit) as end:
            online_trainer.main([*flags, '--save_dir', str(folder), *['--resume'][:number > 1]])
        content = load_checkpoint(folder / 'last.pth')
        assert end.value.code == 130 and content['agent']['step'] == number
    assert steps == list(range(7)) and len(content['round']['infos']) == 3  # 4 updates in the first round
    monkeypatch.setattr(online_trainer.OnlineAgent, 'update', update)
    evaluate = online_trainer.evaluate
    monkeypatch.setattr(online_trainer, 'evaluate',
                        lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9))
    with pytest.raises(SystemExit) as end:
        online_trainer.main([*flags, '--save_dir', str(folder), '--resume'])
    assert end.value.code == 143
    monkeypatch.setattr(online_trainer, 'evaluate', evaluate)
    online_trainer.main([*flags, '--save_dir', str(folder), '--resume'])
    assert_same_run(online_trainer, {online_trainer: (flags, tmp_path / 'whole')}, folder, assert_same)


def test_second_signal_ends_the_process(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_trainer.OfflineAgent, 'update',
                        lambda *_: [time.sleep(0.01) for _ in range(3000)])
    folder = tmp_path / 'run'
    pid = start(offline_trainer, [*whole[offline_trainer][0], '--save_dir', str(folder)])
    while not (folder / 'train.csv').exists():
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(pid, signal.SIGINT)
    assert ended(pid, 0.5) is None  # the update is not finished
    os.kill(pid, signal.SIGINT)
    assert ended(pid, 15) == 130  # the update takes 30 s
    assert not (folder / 'last.pth').exists()


@pytest.mark.parametrize('script', [offline_trainer, online_trainer])
def test_resuming_a_finished_run_changes_nothing(script, whole, tmp_path, capfd, assert_same):
    folder = tmp_path / 'copy'
    shutil.copytree(whole[script][1], folder)
    before = {path.name: path.read_bytes() for path in folder.glob('*.[pc][ts][hv]')}
    assert len(before) == {offline_trainer: 3, online_trainer: 4}[script]
    assert ended(start(script, [*whole[script][0], '--save_dir', str(folder), '--resume']), 200) == 0
    assert 'this run is finished' in capfd.readouterr().out
    assert before == {path.name: path.read_bytes() for path in folder.glob('*.[pc][ts][hv]')}


@pytest.mark.parametrize('script, changes, words', [
    (offline_trainer, ['--batch_size', '5'], ['--batch_size was 4, is 5']),
    (offline_trainer, ['--seed', '1', '--max_trajectories', '3'], ['--seed was 0, is 1',
                                                                   '--max_trajectories was 0, is 3']),
    (offline_trainer, ['--dataset', 'antmaze-large-navigate-v0'],
     ['--dataset was antmaze-medium-navigate-v0, is antmaze-large-navigate-v0']),
    (offline_trainer, ['--lr', '0.1', '--val_interval', '7'],
     ['--lr was 0.0003, is 0.1', '--val_interval was 6, is 7']),
    (online_trainer, ['--num_envs', '2', '--update_ratio', '1'],
     ['--num_envs was 3, is 2', '--update_ratio was 0.2']),
])
def test_resume_names_contradicting_flags(script, changes, words, whole, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(whole[script][1], folder)
    with pytest.raises(ValueError, match='--resume needs the flags') as caught:
        script.main([*whole[script][0], *changes, '--save_dir', str(folder), '--resume'])
    for word in words:
        assert word in str(caught.value)
    copied, original = (sorted(path.name for path in run.iterdir()) for run in (folder, whole[script][1]))
    assert copied == original


def test_resume_refuses_other_data(whole, tmp_path, data_path):
    folder, other = tmp_path / 'copy', tmp_path / 'other.npz'
    shutil.copytree(whole[offline_trainer][1], folder)
    with np.load(data_path, allow_pickle=False) as arrays:
        changed = {name: arrays[name] for name in arrays}
    changed['observations'][700, 3] += 1e-3  # a validation state
    np.savez(other, **changed)
    flags = [*whole[offline_trainer][0], '--save_dir', str(folder), '--resume']
    with pytest.raises(ValueError, match='--resume needs the data'):
        offline_trainer.main([*flags, '--dataset_path', str(other)])
    shutil.copy(data_path, other)
    offline_trainer.main([*flags, '--dataset_path', str(other)])  # the same data in another file


def test_raised_budget_gives_the_weights_of_one_long_run(whole, tmp_path, assert_same):
    flags, reference = whole[offline_trainer]
    run = [*flags, '--save_dir', str(tmp_path / 'run')]
    offline_trainer.main([*run, '--num_updates', '17'])
    offline_trainer.main([*run, '--resume'])
    one, other = (load_checkpoint(folder / 'last.pth')['agent'] for folder in (reference, tmp_path / 'run'))
    assert_same(one, other)


def test_online_resumes_without_the_offline_checkpoint(whole, tmp_path, assert_same):
    """The checkpoint of an online run has a copy of the offline agent."""
    flags = whole[online_trainer][0]
    source, folder = tmp_path / 'offline.pth', tmp_path / 'run'
    shutil.copy(flags[-1], source)
    flags = [*flags[:-1], str(source), '--save_dir', str(folder)]
    online_trainer.main([*flags, '--max_steps', '90'])
    source.unlink()
    online_trainer.main([*flags, '--max_steps', '180', '--resume'])
    assert load_checkpoint(folder / 'last.pth')['collector']['steps'] == 180


def test_resume_keeps_the_best_model(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_trainer, 'validate', lambda agent, *_: {'total_loss': abs(agent.step - 12)})
    run = [*whole[offline_trainer][0], '--save_dir', str(tmp_path / 'run')]
    offline_trainer.main([*run, '--num_updates', '18'])
    offline_trainer.main([*run, '--num_updates', '30', '--resume'])
    assert load_checkpoint(tmp_path / 'run' / 'best_model.pth')['agent']['step'] == 12


def test_resume_restores_the_global_generators(whole, tmp_path, monkeypatch):
    """The trainings do not draw from them; an update that does so is resumed exactly."""
    update = offline_trainer.OfflineAgent.update

    def noisy(self, batch):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return update(self, batch) | {'noise': noise}

    monkeypatch.setattr(offline_trainer.OfflineAgent, 'update', noisy)
    flags = [*whole[offline_trainer][0], '--num_updates', '12']
    offline_trainer.main([*flags, '--save_dir', 'one'])
    offline_trainer.main([*flags, '--save_dir', 'two', '--num_updates', '6'])
    offline_trainer.main([*flags, '--save_dir', 'two', '--resume'])
    assert timeless('one/train.csv') == timeless('two/train.csv')


# ------------------------------------------------------------- what fails after the gradient steps loses none
def fail(*_, **__):
    raise OSError('the environment failed 5 times in a row')


def test_failed_evaluation_is_repeated_alone(whole, tmp_path, monkeypatch, assert_same, capsys):
    """An environment may fail in the last evaluation, after hours of gradient steps."""
    (flags, reference), folder = whole[online_trainer], tmp_path / 'run'
    flags = [*flags, '--save_dir', str(folder)]
    evaluate = online_trainer.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(online_trainer, 'evaluate', lambda agent, envs, count, *rest: (
            fail() if count == 2 else evaluate(agent, envs, count, *rest)))  # 2 in the last evaluation only
        with pytest.raises(OSError, match='evaluation failed: .* 5 times .*last.pth, and --resume repeats'):
            online_trainer.main(flags)
    done = load_checkpoint(reference / 'last.pth')['agent']['step']
    assert load_checkpoint(folder / 'last.pth')['agent']['step'] == done

    monkeypatch.setattr(online_trainer.OnlineAgent, 'update', lambda *_: pytest.fail('an update'))
    monkeypatch.setattr(online_trainer.Collector, 'round', lambda *_: pytest.fail('a round'))
    capsys.readouterr()
    online_trainer.main([*flags, '--resume'])
    assert_same_run(online_trainer, whole, folder, assert_same)
    assert not set('\r\x1b') & set(capsys.readouterr().err), 'no bar in a log'


def test_failed_validation_is_repeated_alone(whole, tmp_path, monkeypatch, assert_same):
    flags, reference = whole[offline_trainer]
    run = [*flags, '--save_dir', str(tmp_path / 'run')]
    with monkeypatch.context() as patch:
        patch.setattr(offline_trainer, 'validate',
                      lambda agent, *_: fail() if agent.step == 40 else {'total_loss': 9.0})
        with pytest.raises(OSError, match='5 times'):
            offline_trainer.main(run)
    assert load_checkpoint(tmp_path / 'run' / 'last.pth')['agent']['step'] == 40

    monkeypatch.setattr(offline_trainer.OfflineAgent, 'update', lambda *_: pytest.fail('an update'))
    offline_trainer.main([*run, '--resume'])
    assert_same(*(load_checkpoint(folder / 'last.pth')['agent'] for folder in (reference, tmp_path / 'run')))
    rows = timeless(tmp_path / 'run' / 'train.csv')
    assert rows[-1] == timeless(reference / 'train.csv')[-1] and len(rows) == len(read_csv(reference / 'train.csv'))


@pytest.mark.parametrize('script, csv, step', [
    (offline_trainer, 'train.csv', 20), (offline_trainer, 'train.csv', 24), (online_trainer, 'updates.csv', 8),
    (online_trainer, 'online.csv', 90)])
def test_row_that_cannot_be_written_loses_no_update(script, csv, step, whole, tmp_path, monkeypatch, assert_same):
    """The disk is full for a moment. A resumed run writes the row."""
    def guarded(write):
        def write_unless_full(self, *row):
            if self.path.name == csv and self.rows and self.rows[-1]['step'] == step:
                fail()
            write(self, *row)

        return write_unless_full

    flags, folder = whole[script][0], tmp_path / 'run'
    with monkeypatch.context() as patch:
        for name in ('_append', '_rewrite'):
            patch.setattr(MetricsLog, name, guarded(getattr(MetricsLog, name)))
        with pytest.raises(OSError, match='5 times'):
            script.main([*flags, '--save_dir', str(folder)])
    done = load_checkpoint(folder / 'last.pth')['agent']['step']
    assert done == (12 if csv == 'online.csv' else step), 'all updates before the row'
    script.main([*flags, '--save_dir', str(folder), '--resume'])
    assert_same_run(script, whole, folder, assert_same)


@pytest.mark.parametrize('script', [offline_trainer, online_trainer])
def test_failing_pictures_and_prints_change_nothing(script, whole, tmp_path, monkeypatch, capsys, assert_same):
    folder = tmp_path / 'run'
    monkeypatch.setattr(script, 'plot_curves', fail)
    monkeypatch.setattr('support.progress.tqdm.write', fail)
    if script is offline_trainer:
        monkeypatch.setattr(offline_trainer.TrainingPictures, 'draw', fail)
    else:
        monkeypatch.setattr(online_trainer, 'draw_evaluation', fail)
        monkeypatch.setattr(online_trainer, 'record', fail)
    extra = ['--video'] if script is online_trainer else []
    script.main([*whole[script][0], *extra, '--save_dir', str(folder)])
    assert_same_run(script, whole, folder, assert_same)

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('warning: ')]
    assert all('was not made (OSError: the environment failed' in line for line in lines)
    names = {offline_trainer: ['training_curves.png', 'a picture in'],
             online_trainer: ['online_training_curves.png', 'maze_paths.png', 'videos']}[script]
    assert all(any(name in line for line in lines) for name in names)
