"""The commands from end to end: tiny networks, a slice of the bundled data, OGBench's environments."""

import dataclasses
import functools
import json
import os
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

import evaluate
import offline_trainer
import ogbench_utils
import online_trainer
from figures import pictures
from offline_agent import OfflineConfig
from online_agent import OnlineConfig
from support import download
from support.flags import run_main
from support.metrics import read_csv
from support.runs import check_unchanged, new_run_dir

ROOT = Path(__file__).resolve().parent.parent
ANT, HUMANOID = 'antmaze-medium-navigate-v0', 'humanoidmaze-medium-navigate-v0'
LOSSES = ('critic', 'value', 'state', 'reward', 'infonce', 'alignment', 'proposer', 'total')


def as_flags(**values):
    """Return the list of words `--name value` of a command line."""
    return [word for name, value in values.items() for word in (f'--{name}', str(value))]


OFFLINE = as_flags(d_model=32, headdim=16, d_state=8, hidden_dim=32, context_length=20, transition_steps=5,
                   batch_size=4, num_updates=6, val_interval=3, log_interval=2)
ONLINE = as_flags(idm_hidden_dim=32, batch_size=4, num_envs=2, random_steps=200, initial_updates=2,
                  max_steps=400, eval_interval=0, eval_episodes=1, final_eval_episodes=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='module')
def data_path(tmp_path_factory):
    """Write four trajectories of 200 states, without a -val file beside them."""
    path = tmp_path_factory.mktemp('data') / 'slice.npz'
    bundled = ROOT / 'datasets' / f'{ogbench_utils.BUNDLED_NAME}.npz'
    observations = ogbench_utils.load_trajectories(bundled, 4)[0].reshape(4, -1, 29)[:, :200].reshape(-1, 29)
    np.savez(path, observations=observations, terminals=np.arange(800) % 200 == 199)
    return path


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory, data_path, run_script, fit_quickly):
    """Run README's three commands in one folder; each finds the files of the previous ones without a flag."""
    cwd = tmp_path_factory.mktemp('pipeline')
    patch = pytest.MonkeyPatch()
    patch.setattr('labeling.labeler.Labeler.fit', fit_quickly)
    patch.setattr(ogbench_utils, 'make_env', functools.partial(ogbench_utils.make_env, max_episode_steps=50))
    online = cwd / 'online_checkpoints' / ANT / 'seed0'
    output = [
        run_script('offline_trainer.py', '--dataset_path', data_path, *OFFLINE, cwd=cwd),
        run_script('online_trainer.py', *ONLINE, '--num_envs', 5, cwd=cwd),
        run_script('evaluate.py', '--checkpoint', online / 'last.pth', '--episodes-per-task', 1,
                   '--num-envs', 5, cwd=cwd),
    ]
    patch.undo()
    return cwd / 'offline_checkpoints' / ANT / 'seed0', online, [stdout for stdout, _ in output]


def load(path):
    return torch.load(path, weights_only=True)


def learned(path):
    """Return the content of a checkpoint without the flags of the last command."""
    content = load(path)
    del content['flags']
    return content


def timeless(rows):
    """Return CSV rows without their columns of time."""
    return [{name: value for name, value in row.items() if not name.startswith('time')} for row in rows]


def assert_is_plot(path):
    """Check that a file is a complete PNG with more than empty axes."""
    content = path.read_bytes()
    assert content.startswith(b'\x89PNG\r\n\x1a\n') and content.endswith(b'IEND\xaeB`\x82')
    assert min(int.from_bytes(content[i:i + 4], 'big') for i in (16, 20)) > 350  # width and height in pixels
    assert len(content) > 20_000  # bytes; empty axes have fewer


def read_config(path, script, argv):
    """Return config.json after checking the command line and the versions in it."""
    config = json.loads(path.read_text())
    assert Path(config['argv'][0]).name == script and config['argv'][1:] == argv
    assert config['versions']['torch'] == torch.__version__ and config['versions']['ogbench']
    assert 'git_commit' in config
    return config


# ----------------------------------------------------------------------------------------- the three commands
def test_offline_trainer_writes_checkpoints_csv_config_and_figures(pipeline, data_path):
    folder, _, (output, *_) = pipeline
    assert sorted(path.name for path in folder.iterdir()) == [
        '.lock', 'best_model.pth', 'config.json', 'last.pth', 'maze_latents.png', 'maze_proposals.png',
        'maze_values.png', 'train.csv', 'training_curves.png']
    rows = read_csv(folder / 'train.csv')
    assert [row['step'] for row in rows] == [2, 3, 4, 6]
    for row in rows:
        assert row.keys() >= {f'training/{name}_loss' for name in LOSSES}
    validated = [row for row in rows if 'validation/total_loss' in row]
    assert [row['step'] for row in validated] == [3, 6]
    for row in validated:
        assert row.keys() >= {f'validation/{name}_loss' for name in LOSSES}
        assert all(np.isfinite(list(row.values())))
    last, best = load(folder / 'last.pth'), load(folder / 'best_model.pth')
    assert last['agent']['step'] == 6 and last['kind'] == 'offline'
    assert best['agent']['step'] == min(validated, key=lambda row: row['validation/total_loss'])['step']
    argv = ['--dataset_path', str(data_path), *OFFLINE]
    config = read_config(folder / 'config.json', 'offline_trainer.py', argv)
    expected = {'d_model': 32, 'num_updates': 6, 'dataset': ANT, 'expectile': 0.9}
    assert config['flags'].items() >= expected.items()
    names = [field.name for cls in (offline_trainer.OfflineTrainConfig, OfflineConfig)
             for field in dataclasses.fields(cls)]
    assert sorted(config['flags']) == sorted(names)
    for name in ('training_curves', 'maze_values', 'maze_proposals', 'maze_latents'):
        assert_is_plot(folder / f'{name}.png')
    assert 'the last 1 trajectories are held out' in output and '3 trajectories, 600 states of 29' in output
    assert str(folder / 'last.pth') in output


def test_online_trainer_writes_checkpoints_csvs_config_and_figures(pipeline):
    offline, folder, (_, output, _) = pipeline
    assert 'on held-out steps' in output and 'below 0.85, more --random_steps usually help' in output
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith('evaluation')) == [
        '.lock', 'best_model.pth', 'config.json', 'last.pth', 'maze_paths.png', 'online.csv',
        'online_training_curves.png', 'updates.csv']
    rows = read_csv(folder / 'online.csv')
    assert [row['step'] for row in rows] == [200, 250, 300, 350, 400], 'an eighth of the budget in a round'
    for row in rows:
        assert row.keys() >= {
            *(f'collect/{name}' for name in ('success', 'reward', 'length', 'epsilon', 'action_noise',
                                             'goal_biased_rate')),
            *(f'training/{name}_loss' for name in ('inverse_dynamics', 'feature_decoder', 'baseline',
                                                     'total'))}
        assert all(np.isfinite(list(row.values())))
    assert (rows[0]['collect/epsilon'], rows[0]['collect/action_noise']) == (0.3, 0.2)
    assert 0.05 < rows[-1]['collect/epsilon'] < 0.3 and rows[0]['collect/goal_biased_rate'] == 0
    assert 0 < np.mean([row['collect/goal_biased_rate'] for row in rows[1:]]) < 0.5
    assert ['labeler/r2' in row for row in rows] == [True, False, True, False, False], 'when its steps grew by half'
    tasks = {f'evaluation/task{task}_success' for task in range(1, 6)}
    assert rows[-1].keys() >= {'evaluation/overall_success', *tasks} and not tasks & rows[0].keys()
    last = load(folder / 'last.pth')
    assert last['kind'] == 'online' and last['agent']['step'] == 2 + round(0.2 * 200)
    replay, ends = last['replay'], last['replay']['ends']
    assert len(replay['observations']) == len(replay['actions']) == 400 + len(ends) == ends[-1] + 1
    assert last['collector']['steps'] == 400
    assert last['collector']['episodes'] == len(ends) == rows[-1]['episodes']
    assert load(folder / 'best_model.pth')['success'] == rows[-1]['evaluation/overall_success']
    config = read_config(folder / 'config.json', 'online_trainer.py', [*ONLINE, '--num_envs', '5'])
    expected = {'max_steps': 400, 'num_envs': 5, 'dataset': ANT, 'update_ratio': 0.2}
    assert config['flags'].items() >= expected.items()
    assert config['offline_checkpoint'] == str(offline / 'last.pth')
    for name in ('online_training_curves', 'maze_paths', 'evaluation_1_episodes_seed0_paths'):
        assert_is_plot(folder / f'{name}.png')
    assert f'offline checkpoint: {offline / "last.pth"} (6 updates)' in output


def test_evaluate_prints_and_writes_success_with_intervals(pipeline):
    _, folder, (*_, output) = pipeline
    metrics = json.loads((folder / 'evaluation_1_episodes_seed0.json').read_text())
    assert metrics['checkpoint'] == str(folder / 'last.pth') and metrics['episodes_per_task'] == 1
    for name in ('overall', *(f'task{task}' for task in range(1, 6))):
        rate = metrics[f'evaluation/{name}_success']
        assert metrics[f'evaluation/{name}_low'] <= rate <= metrics[f'evaluation/{name}_high']
        assert re.search(rf'^{name.replace("task", "task ")} +{rate:.1%} ', output, re.M)
    assert 1 <= metrics['evaluation/episode_length'] <= 1000


def test_online_trainer_uses_the_newest_offline_run(pipeline, folder, quick_training, capsys):
    runs = [Path('offline_checkpoints', *names, 'last.pth') for names in (
        (ANT, 'seed0'), (ANT, 'seed0-run2'), (ANT, 'seed1'), ('antmaze-large-navigate-v0', 'seed0'))]
    for run, age in zip(runs, (300, 100, 200, 0), strict=True):
        run.parent.mkdir(parents=True)
        shutil.copy(pipeline[0] / 'last.pth', run)
        os.utime(run, (1e9 - age, 1e9 - age))
    online_trainer.main([*ONLINE, '--random_steps', '40', '--max_steps', '40', '--max_trajectories', '2'])
    assert f'offline checkpoint: {folder / runs[1]} (' in capsys.readouterr().out
    config = json.loads(Path('online_checkpoints', ANT, 'seed0', 'config.json').read_text())
    assert config['offline_checkpoint'] == str(folder / runs[1])


# ----------------------------------------------------------------------------------------------------- resume
def test_offline_resume_is_exact(pipeline, folder, no_pictures, data_path, assert_same):
    flags = [*OFFLINE, '--dataset_path', str(data_path)]
    offline_trainer.main([*flags, '--num_updates', '3'])
    halfway = Path('offline_checkpoints', ANT, 'seed0')
    assert [row['step'] for row in read_csv(halfway / 'train.csv')] == [2, 3]
    offline_trainer.main([*flags, '--resume'])
    assert [path.name for path in halfway.parent.iterdir()] == ['seed0']
    assert_same(learned(halfway / 'last.pth'), learned(pipeline[0] / 'last.pth'))
    assert_same(learned(halfway / 'best_model.pth'), learned(pipeline[0] / 'best_model.pth'))
    assert timeless(read_csv(halfway / 'train.csv')) == timeless(read_csv(pipeline[0] / 'train.csv'))

    offline_trainer.main(flags)  # without --resume: a new folder, from the beginning
    assert sorted(path.name for path in halfway.parent.iterdir()) == ['seed0', 'seed0-run2']
    assert_same(learned(halfway.with_name('seed0-run2') / 'last.pth'), learned(pipeline[0] / 'last.pth'))


def test_online_resume_is_exact(folder, quick_training, data_path, assert_same):
    """Interrupt a run of 200 random steps and four rounds of 30 steps after its first and third round.

    The interrupted run differs in the evaluations that end its parts only, which `best` includes.
    """
    offline_trainer.main([*OFFLINE, '--dataset_path', str(data_path)])
    whole, parts = Path('whole'), Path('parts')
    flags = [*ONLINE, '--update_ratio', '0.1', '--schedule_episodes', '200', '--save_dir']
    online_trainer.main([*flags, str(whole), '--max_steps', '320'])
    for steps, *resume in (('200',), ('260', '--resume'), ('320', '--resume')):
        online_trainer.main([*flags, str(parts), '--max_steps', steps, *resume])
    one, other = load(whole / 'last.pth'), load(parts / 'last.pth')
    for key in ('agent', 'replay', 'collector', 'rng', 'source', 'dataset'):
        assert_same(one[key], other[key], key)
    assert one['agent']['step'] == 2 + 4 * 3 and other['collector']['steps'] == 320
    rows, other_rows = (timeless(read_csv(run / 'online.csv')) for run in (whole, parts))
    assert [row['step'] for row in rows] == [200, 230, 260, 290, 320] and rows[-1] == other_rows[-1]
    for row, other in zip(rows, other_rows, strict=True):
        assert row == {name: other[name] for name in row}
        assert all(name.startswith('evaluation/') for name in other.keys() - row.keys())


# --------------------------------------------------------------------------------------------- other families
def test_commands_work_for_the_humanoid(folder, quick_training, run_script, capsys):
    run_script('scripts/data/collect_dataset.py', '--dataset', HUMANOID, '--policy', 'random',
               '--num_episodes', 3, '--num_val_episodes', 1, '--max_episode_steps', 60, cwd=folder)
    offline_trainer.main(['--dataset', HUMANOID, *OFFLINE, '--num_updates', '2'])
    assert '3 trajectories, 180 states of 69 dimensions' in capsys.readouterr().out
    online_trainer.main(['--dataset', HUMANOID, *ONLINE, '--random_steps', '60', '--max_steps', '120',
                         '--epsilon_start', '1', '--epsilon_end', '1', '--action_noise_start', '0.5'])
    run = Path('online_checkpoints', HUMANOID, 'seed0')
    replay = load(run / 'last.pth')['replay']
    assert replay['observations'].shape == (124, 69) and replay['actions'].shape == (124, 21)
    assert replay['actions'].abs().max() <= 1 and replay['actions'].std() > 0.2
    rows = read_csv(run / 'online.csv')
    assert [row['step'] for row in rows] == [60, 90, 120]
    assert [row['collect/goal_biased_rate'] for row in rows] == [0, 1, 1]
    evaluate.main(['--checkpoint', str(run / 'last.pth'), '--episodes_per_task', '1'])
    metrics = json.loads((run / 'evaluation_1_episodes_seed0.json').read_text())
    assert metrics['evaluation/episode_length'] == 30 and metrics['evaluation/overall_success'] == 0


MAZE_FIGURES = ['maze_values', 'maze_proposals', 'maze_latents', 'maze_paths',
                'evaluation_1_episodes_seed0_paths']
MANIPULATION_FIGURES = ['trajectory_values', 'trajectory_latents', 'episode_values',
                        'evaluation_1_episodes_seed0_values']


@pytest.mark.parametrize('name, dimensions, figures', [
    ('pointmaze-medium-navigate-v0', 2, MAZE_FIGURES),
    ('antsoccer-arena-navigate-v0', 42, MAZE_FIGURES),
    ('cube-single-play-v0', 28, MANIPULATION_FIGURES),
    ('puzzle-3x3-play-v0', 55, MANIPULATION_FIGURES),
])
@pytest.mark.usefixtures('short_episodes', 'quick_labeler', 'plain_figures')
def test_commands_work_for_other_families(folder, monkeypatch, capsys, name, dimensions, figures):
    """Train on states of random motion and evaluate with a plan; the figures depend on the environment."""
    env = ogbench_utils.make_env(name)
    monkeypatch.setattr(pictures, 'make_env', lambda name: env)
    states = []
    for episode in range(3):
        states.append(ogbench_utils.reset_env(env, episode % 5 + 1, episode)[0])
        states += [env.step(env.action_space.sample())[0] for _ in range(59)]
    np.savez('states.npz', observations=np.stack(states), terminals=np.arange(180) % 60 == 59)

    offline_trainer.main(['--dataset', name, '--dataset_path', 'states.npz', *OFFLINE, '--num_updates', '2'])
    envs = ['--num_envs', '1' if figures is MANIPULATION_FIGURES else '5']  # a robot arm takes two seconds
    online_trainer.main(['--dataset', name, *ONLINE, '--random_steps', '60', '--max_steps', '120', *envs])
    run = Path('online_checkpoints', name, 'seed0')
    evaluate.main(['--checkpoint', str(run / 'last.pth'), '--episodes_per_task', '1', *envs])
    output = capsys.readouterr().out
    assert f'120 states of {dimensions} dimensions' in output
    assert 'map of the data: ' in output and '; used for planning' in output
    metrics = json.loads((run / 'evaluation_1_episodes_seed0.json').read_text())
    assert metrics['plan'] and metrics.keys() >= {f'evaluation/task{task}_success' for task in range(1, 6)}

    folders = (Path('offline_checkpoints'), Path('online_checkpoints'))
    drawn = {path.stem for runs in folders for path in runs.rglob('*.png')}
    assert drawn == {'training_curves', 'online_training_curves', *figures}


# ------------------------------------------------------------------------------------------------------ flags
@pytest.mark.parametrize('script', [offline_trainer, online_trainer])
def test_flags_accept_underscores_and_dashes(monkeypatch, script):
    got = []
    monkeypatch.setattr(script, 'train', lambda *configs: got.append(configs))
    script.main(['--dataset_path', 'a.npz', '--batch_size', '3', '--lr', '0.5', '--resume'])
    script.main(['--dataset-path', 'a.npz', '--batch-size', '3', '--lr=0.5', '--resume'])
    script.main([])
    assert got[0] == got[1] != got[2]
    values = {name: value for config in got[0] for name, value in dataclasses.asdict(config).items()}
    assert values.items() >= {'dataset_path': 'a.npz', 'batch_size': 3, 'lr': 0.5, 'resume': 'yes'}.items()
    assert got[2] == tuple(type(config)() for config in got[2])


@pytest.mark.parametrize('script, configs', [
    (offline_trainer, (offline_trainer.OfflineTrainConfig, OfflineConfig)),
    (online_trainer, (online_trainer.OnlineTrainConfig, OnlineConfig)),
    (evaluate, (evaluate.EvaluateConfig,)),
])
def test_help_lists_every_flag_with_its_default(capsys, script, configs):
    with pytest.raises(SystemExit) as end:
        script.main(['--help_all'])
    text = ''.join(capsys.readouterr().out.split())  # lines are broken anywhere
    assert end.value.code == 0
    for field in (field for config in configs for field in dataclasses.fields(config)):
        assert f'--{field.name}' in text and f'--{field.name.replace("_", "-")}' in text
        default = '' if field.default is None else f' (default: {field.default})'
        assert ''.join(f"{field.metadata['help']}{default}".split()) in text


@pytest.mark.parametrize('flags, words', [
    (['--num_updates_', '3'], 'unrecognized arguments: --num_updates_'),
    (['--seed', 'x'], 'invalid int value'),
    (['--mamba_backend', 'cuda'], 'invalid choice'),
    (['--num_update', '3'], 'unrecognized arguments'),
])
def test_bad_flags_end_with_usage(capsys, flags, words):
    with pytest.raises(SystemExit) as end:
        offline_trainer.main(flags)
    assert end.value.code == 2 and words in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- errors
def assert_one_line(stderr, *words):
    """Check that stderr is one error line that contains all words."""
    assert stderr.startswith('error: ') and stderr.count('\n') == 1, stderr
    for word in words:
        assert str(word) in stderr


@pytest.mark.parametrize('script, flags, words', [
    ('offline_trainer.py', ['--dataset', 'antmaze-medum-navigate-v0'], ['antmaze-medum-navigate-v0', ANT]),
    ('online_trainer.py', [], ['offline_trainer.py', f'--dataset {ANT}', '--offline_checkpoint']),
    ('evaluate.py', ['--checkpoint', 'none.pth'], ['none.pth']),
])
def test_user_errors_are_one_line(tmp_path, run_script, script, flags, words):
    _, stderr = run_script(script, *flags, cwd=tmp_path, code=2)
    assert_one_line(stderr, *words)
    assert not list(tmp_path.iterdir())


def test_other_user_errors_are_one_line(pipeline, folder, data_path, capsys):
    """Call `run_main`, as the scripts do, inside this process, which saves time."""
    offline, online = (run / 'last.pth' for run in pipeline[:2])
    Path('text.pth').write_text('hello')
    cases = [
        (evaluate, ['--checkpoint', offline], [offline, 'online']),
        (evaluate, [], ['--checkpoint']),
        (evaluate, ['--checkpoint', online, '--episodes_per_task', 0], ['--episodes_per_task']),
        (evaluate, ['--checkpoint', online, '--dataset', HUMANOID], [online, '29', '69']),
        (evaluate, ['--checkpoint', 'text.pth'], ['text.pth', 'checkpoint']),
        (online_trainer, ['--offline_checkpoint', online], [online, 'offline']),
        (online_trainer, ['--offline_checkpoint', 'none.pth'], ['none.pth']),
        (online_trainer, ['--resume'], ['last.pth']),
        (offline_trainer, ['--resume', '--dataset_path', data_path, *OFFLINE], ['last.pth']),
        (offline_trainer, ['--dataset_path', 'none.npz'], ['--dataset_path', 'none.npz']),
        (offline_trainer, ['--dataset_path', data_path, '--device', 'tpu'], ['--device tpu']),
        (offline_trainer, ['--dataset_path', data_path, '--random_goals', 2], ['random_goals']),
        (offline_trainer, ['--dataset_path', data_path, '--headdim', 48], ['headdim']),
    ]
    for script, flags, words in cases:
        with pytest.raises(SystemExit) as end:
            run_main(lambda script=script, flags=flags: script.main([*map(str, flags)]))
        assert end.value.code == 2
        assert_one_line(capsys.readouterr().err, *words)
    assert [path.name for path in folder.iterdir()] == ['text.pth']


@pytest.mark.usefixtures('no_pictures')
def test_offline_trainer_falls_back_to_bundled_data_without_a_network(folder, monkeypatch, capsys):
    def no_network(request, timeout):
        raise URLError(TimeoutError('timed out'))

    monkeypatch.setattr(download, 'urlopen', no_network)
    for variable in ('HOME', 'USERPROFILE'):
        monkeypatch.setenv(variable, str(folder))
    offline_trainer.main(['--dataset', ANT, '--max_trajectories', '2', *OFFLINE, '--num_updates', '1'])
    assert '2 trajectories, 2,002 states' in (output := capsys.readouterr().out)
    assert f'{ogbench_utils.BUNDLED_NAME}.npz: the bundled' in output and f'NOT the official {ANT}' in output


def test_check_unchanged_names_flags_that_differ():
    check_unchanged({'d_model': 32, 'lr': 0.1}, {'d_model': 32, 'lr': 0.1})
    with pytest.raises(ValueError, match='--d_model was 64, is 32'):
        check_unchanged({'d_model': 64, 'lr': 0.1}, {'d_model': 32, 'lr': 0.1})


def test_new_run_dir_never_returns_a_used_folder_unless_resumed(tmp_path):
    assert new_run_dir('root', 'data', 0, tmp_path) == tmp_path
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='holds a run already.*--resume'):
        new_run_dir('root', 'data', 0, tmp_path)
    assert new_run_dir('root', 'data', 0, tmp_path, resume=True) == tmp_path
    (tmp_path / 'data' / 'seed0').mkdir(parents=True)
    (tmp_path / 'data' / 'seed0' / 'config.json').write_text('{}')
    assert new_run_dir(tmp_path, 'data', 0).name == 'seed0-run2'
    assert new_run_dir(tmp_path, 'data', 0, resume=True).name == 'seed0'
