"""evaluate.py: metrics, intervals, comparisons on the same episodes; and the scripts that measure labels."""

import dataclasses
import json
import re
from pathlib import Path

import gymnasium
import measure_labels
import measure_settings
import numpy as np
import plot_runs
import pytest
import torch

import evaluate
from observing.observation_models import FULL_STATE, ObservationModel
from offline_agent import OfflineAgent
from ogbench_utils import make_env
from online_agent import OnlineAgent
from support.files import save_checkpoint
from support.metrics import read_csv
from trajectories import TrajectoryDataset

ANT = 'antmaze-medium-navigate-v0'


class FirstActionEnv(gymnasium.Wrapper):
    """Episodes of 12 steps that succeed if the first action of the ant's first joint is positive."""

    def reset(self, **options):
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action):
        self.first = self.first if self.steps else action[0]
        self.steps += 1
        observation, reward, _, _, info = self.env.step(action)
        return observation, reward, False, self.steps == 12, info | {'success': float(self.first > 0)}


def save_agent(path, agent, dataset, observation_model=FULL_STATE):
    data = {'observation_model': dataclasses.asdict(observation_model)}
    save_checkpoint(path, {'kind': 'online', 'dataset': dataset, 'agent': agent.state_dict(), 'data': data})


@pytest.fixture
def checkpoints(make_config, make_online, tmp_path, monkeypatch):
    """Return the files of two agents that differ in the sign of their actions."""
    monkeypatch.setattr(evaluate, 'make_env', lambda dataset: FirstActionEnv(make_env(dataset)))
    torch.manual_seed(0)
    observations = np.random.default_rng(0).standard_normal((60, 29)).astype(np.float32)
    data = TrajectoryDataset(observations, np.array([0, 30]), np.array([29, 59]))

    paths = []
    for sign in (1, -1):
        agent = make_online(action_dim=8, offline=OfflineAgent(29, make_config()), data=data)
        last_layer = agent.ema_nets['inverse_dynamics'].net[-1]
        torch.nn.init.constant_(last_layer.weight, 0.0)
        torch.nn.init.constant_(last_layer.bias, sign * 0.5)
        paths.append(tmp_path / f'{sign}' / 'last.pth')
        save_agent(paths[-1], agent, ANT)
    return paths


def run(checkpoint, *flags):
    """Evaluate 3 episodes per task in this process, where `make_env` is replaced; return the metrics."""
    flags = ['--episodes_per_task', '3', *map(str, flags)]
    evaluate.main(['--checkpoint', str(checkpoint), *flags])
    path, = checkpoint.parent.glob('evaluation_*_episodes_seed0.json')
    return json.loads(path.read_text())


def test_metrics_have_ogbenchs_names_and_intervals(checkpoints):
    metrics = run(checkpoints[0])
    names = ['overall_success', *(f'task{k}_success' for k in range(1, 6))]
    assert all(metrics[f'evaluation/{name}'] == 1.0 for name in names)
    assert metrics['evaluation/task3_low'] < metrics['evaluation/overall_low'] < 1
    assert metrics['evaluation/overall_high'] == 1
    assert metrics['evaluation/task3_reached'] == metrics['evaluation/overall_reached'] == 1
    assert (metrics['dataset'], metrics['episodes_per_task'], metrics['seed']) == (ANT, 3, 0)
    assert (metrics['plan'], metrics['action_scale'], metrics['stuck_noise']) == (True, 1.0, 0.0)
    assert (checkpoints[0].parent / 'evaluation_3_episodes_seed0_paths.png').stat().st_size > 20_000
    assert 'comparison' not in metrics


def test_numbers_are_a_row_that_plot_runs_reads(tmp_path, capsys):
    """Steps are those of the checkpoint; texts, such as its path, are left out."""
    for seed, success in enumerate((0.5, 0.75)):
        output = evaluate.Output(tmp_path / f'seed{seed}' / 'evaluation_50_episodes_seed0.json')
        metrics = {'evaluation/overall_success': success, 'checkpoint': 'a, b.pth', 'plan': True, 'step': 2000}
        output.write(metrics)
        output.beside('.csv').unlink()
        output.write(metrics)  # the JSON file has them
    assert read_csv(output.beside('.csv')) == [{'evaluation/overall_success': 0.75, 'plan': 1, 'step': 2000}]
    plot_runs.main([f'{tmp_path}/seed*/{output.beside(".csv").name}', '--output', str(tmp_path / 'x.png')])
    assert re.search(r' 2 +2,000 +62\.5 ', capsys.readouterr().out)



def test_comparison_is_on_the_same_episodes(checkpoints, plain_figures, capsys, monkeypatch):
    recorded = []
    real = evaluate.evaluate

    def watch(*args, **kwargs):
        metrics, episodes = real(*args, **kwargs)
        recorded.append([(e.task, e.observations[0], e.goal) for e in episodes])
        return metrics, episodes

    monkeypatch.setattr(evaluate, 'evaluate', watch)
    comparison = run(checkpoints[0], '--compare', checkpoints[1])['comparison']
    for ours, theirs in zip(*recorded, strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])

    assert comparison['overall'] == {'difference': 1.0, 'low': 1.0, 'high': 1.0, 'only_ours': 15,
                                     'only_theirs': 0, 'p_value': 2 / 2**15}
    assert comparison['task2']['p_value'] == 0.25 and comparison['checkpoint'] == str(checkpoints[1])
    assert 'overall      +100.0' in capsys.readouterr().out
    assert (checkpoints[0].parent / 'evaluation_3_episodes_seed0_compared_paths.png').exists()


def test_settings_of_acting_apply_to_each_checkpoint(checkpoints, no_pictures, monkeypatch):
    """Every robot counts as stuck from its first step, so that stuck noise decides on success."""
    monkeypatch.setattr('tasks.STUCK_TRANSITIONS', 0)
    path = checkpoints[0]
    metrics = run(path, '--stuck_noise', '9', '--no-plan',
                  '--compare', path, '--compare_set', 'stuck_noise=0')
    assert metrics['stuck_noise'] == 9 and not metrics['plan']
    assert 0 < metrics['evaluation/overall_success'] < 1
    assert metrics['comparison']['overall']['difference'] == metrics['evaluation/overall_success'] - 1


def test_compare_set_is_parsed_and_checked():
    parsed = evaluate.ActOverrides.parse('plan=False,action_scale=0.5')
    assert parsed == evaluate.ActOverrides(plan=False, action_scale=0.5)
    assert evaluate.ActOverrides.parse('') == evaluate.ActOverrides()
    with pytest.raises(ValueError, match='--compare_set speed=2: .* plan, action_scale, stuck_noise'):
        evaluate.ActOverrides.parse('speed=2')
    with pytest.raises(ValueError, match='--compare_set plan=maybe: plan cannot be'):
        evaluate.ActOverrides.parse('plan=maybe')
    with pytest.raises(ValueError, match='action_scale -1.0: must be above 0'):
        evaluate.ActOverrides.parse('action_scale=-1')


def test_evaluation_succeeds_without_a_video(checkpoints, no_pictures, monkeypatch):
    monkeypatch.setattr('figures.videos.find_gl', lambda: (None, {'egl': 'missing'}))
    assert run(checkpoints[0], '--video')['evaluation/overall_success'] == 1.0


def test_bundled_checkpoint_reaches_its_goals(no_pictures, tmp_path):
    path = Path(evaluate.__file__).parent / 'pretrained' / f'{ANT}.pth'
    assert path.stat().st_size < 6e6
    evaluate.main(['--checkpoint', str(path), '--episodes_per_task', '2', '--seed', '0',
                   '--output', str(tmp_path / 'evaluation.json')])
    metrics = json.loads((tmp_path / 'evaluation.json').read_text())
    assert metrics['evaluation/overall_success'] >= 0.5, 'about 0.9 over many episodes'


# --------------------------------------------------------------------------------------------------- scripts
def test_measure_labels_scores_the_labeler(agent, tmp_path, capsys):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, 3)).astype(np.float32)
    states = np.zeros((40, 5), np.float32)
    states[:-1, :3] = actions[:-1]  # the labels of the replaced labeler below
    is_end = np.arange(40) == 39
    np.savez(tmp_path / 'data.npz', observations=states, actions=actions, terminals=is_end)
    np.savez(tmp_path / 'states.npz', observations=states, terminals=is_end)
    save_agent(tmp_path / 'last.pth', agent, '')
    with pytest.raises(ValueError, match='has no `actions`; collect it with --no-state_only'):
        measure_labels.main(['--checkpoint', str(tmp_path / 'last.pth'),
                             '--actions_path', str(tmp_path / 'states.npz')])

    config = measure_labels.LabelConfig(str(tmp_path / 'last.pth'), str(tmp_path / 'data.npz'))
    assert measure_labels.run(config) < 0.5, 'an unfitted labeler'
    assert 'of 39 steps' in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineAgent, 'label', lambda self, steps: steps[:, 0, :3])
        assert measure_labels.run(config) == pytest.approx(1)


def test_measure_labels_scores_received_observations_only(make_agent, make_online, tmp_path, capsys):
    """Steps without both observations have no label."""
    offline = make_agent()
    offline.has_dropout = True
    states = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    is_end = np.arange(100) == 99
    np.savez(tmp_path / 'data.npz', observations=states, actions=states[:, :3], terminals=is_end)
    dropping = ObservationModel('dropped:0.5', drop_rate=0.5)
    save_agent(tmp_path / 'last.pth', make_online(offline=offline), '', dropping)

    measure_labels.run(measure_labels.LabelConfig(str(tmp_path / 'last.pth'), str(tmp_path / 'data.npz')))
    count = int(capsys.readouterr().out.split(' steps')[0].split()[-1])
    assert 10 < count < 45, 'about a quarter of 99'


def test_measure_settings_finds_what_needs_memory(tmp_path, monkeypatch, capsys):
    """Actions equal the previous state, so that only the GRU predicts them. Next states are unpredictable."""
    monkeypatch.setattr(measure_settings, 'NUM_STATES', 500)
    rng = np.random.default_rng(0)
    for end in ('', '-val'):
        states = rng.standard_normal((4, 150, 2)).astype(np.float32)
        actions = np.roll(states, 1, axis=1)
        np.savez(tmp_path / f'data{end}.npz', observations=states.reshape(-1, 2),
                 actions=actions.reshape(-1, 2), terminals=np.arange(600) % 150 == 149)
    with pytest.raises(ValueError, match='--actions_path is required'):
        measure_settings.main([])

    config = measure_settings.SettingsConfig(
        str(tmp_path / 'data.npz'), 'pointmaze-medium-navigate-v0', settings='full,noise:3', num_updates=150,
        batch_size=16, hidden_dim=32)
    found = measure_settings.run(config)
    action = {key: r2 for key, (_, r2) in found.items()}
    assert action['full', 10] > 0.7 and action['full', 100] > 0.7
    assert action['full', 0] < 0.2 and action['full', 1] < 0.2
    assert action['noise:3', 10] < 0.4, 'noise hides the previous state'
    assert all(state < 0.2 for state, _ in found.values())
    assert 'noise:3: ' in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- what is saved
def test_numbers_are_written_before_pictures_and_videos(checkpoints, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError('latex was not found')

    monkeypatch.setattr(evaluate, 'draw_evaluation', fail)
    monkeypatch.setattr(evaluate, 'record', fail)
    assert run(checkpoints[0], '--episodes_per_task', '1', '--video')['evaluation/overall_success'] == 1.0
    _, picture, video = capsys.readouterr().err.splitlines()  # the first: goals are far from the few data
    assert '_paths.png was not made (RuntimeError: latex was not found)' in picture
    assert '_videos was not made' in video


def test_numbers_are_written_before_the_second_checkpoint(checkpoints, monkeypatch):
    measure = evaluate.measure
    monkeypatch.setattr(evaluate, 'measure', lambda config, path, *rest: (
        measure(config, path, *rest) if path == str(checkpoints[0]) else pytest.fail('an environment')))
    with pytest.raises(pytest.fail.Exception):
        run(checkpoints[0], '--episodes_per_task', '1', '--compare', checkpoints[1])
    metrics = json.loads((checkpoints[0].parent / 'evaluation_1_episodes_seed0.json').read_text())
    assert metrics['evaluation/overall_success'] == 1.0


def test_former_evaluation_is_kept(tmp_path, capsys):
    """A look at one episode does not replace an evaluation; the same evaluation again adds no file."""
    def write(*parts):
        output = evaluate.Output(tmp_path / 'evaluation.json')
        for metrics in parts:
            output.write(metrics)
        output.beside('_paths.png').write_text(str(parts[-1]))

    (tmp_path / 'evaluation_notes.txt').write_text('of the user')
    many = {'success': 0.5, 'episodes_per_task': 50}
    compared = many | {'comparison': {'overall': 0.1}}
    for parts in ((many, compared), (many, compared), (many,)):
        write(*parts)
    assert not list(tmp_path.glob('evaluation-*'))
    assert json.loads((tmp_path / 'evaluation.json').read_text()) == compared

    (tmp_path / 'evaluation_videos').mkdir()
    capsys.readouterr()
    write({'success': 1.0, 'episodes_per_task': 1})
    assert capsys.readouterr().out == f'the former evaluation is kept: {tmp_path / "evaluation-1.json"}\n'
    write({'success': 0.0, 'episodes_per_task': 1})
    contents = [json.loads((tmp_path / f'evaluation{end}.json').read_text()) for end in ('-1', '-2', '')]
    assert [content['success'] for content in contents] == [0.5, 1.0, 0.0] and contents[0] == compared
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'evaluation-1.csv', 'evaluation-1.json', 'evaluation-1_paths.png', 'evaluation-1_videos',
        'evaluation-2.csv', 'evaluation-2.json', 'evaluation-2_paths.png', 'evaluation.csv', 'evaluation.json',
        'evaluation_notes.txt', 'evaluation_paths.png']


def test_file_of_something_else_is_kept(tmp_path):
    (tmp_path / 'notes').write_text('of the user')
    evaluate.Output(tmp_path / 'notes').write({'success': 1.0})
    assert (tmp_path / 'notes-1').read_text() == 'of the user'


def test_output_that_cannot_be_written_is_found_before_any_episode(checkpoints, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(evaluate, 'measure', lambda *_: pytest.fail('an episode'))
    for output in (tmp_path / 'file' / 'evaluation.json', tmp_path):
        with pytest.raises(OSError, match=f'^{output} cannot be written .*name another file with --output$'):
            run(checkpoints[0], '--output', output)

    def read_only(**_):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr('tempfile.TemporaryFile', read_only)
    with pytest.raises(OSError, match=r'_seed0.json cannot be written \(Read-only file system\); name'):
        run(checkpoints[0])


def test_full_disk_prints_the_numbers(tmp_path, monkeypatch, capsys):
    def full(path, write):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(evaluate, 'write_atomic', full)
    with pytest.raises(OSError, match=r'x.json cannot be written \(No space left on device\); .*printed') as error:
        evaluate.Output(tmp_path / 'x.json').write({'success': 1.0})
    assert '--resume' not in str(error.value) and '--output' in str(error.value)
    assert json.loads(capsys.readouterr().out) == {'success': 1.0}
