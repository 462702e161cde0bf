"""evaluate.py: names of metrics, intervals, comparison on the same episodes."""

import dataclasses
import json
from pathlib import Path

import gymnasium
import measure_labels
import measure_settings
import numpy as np
import pytest
import torch

import evaluate
from observing.observation_models import FULL_STATE
from offline_agent import OfflineAgent
from ogbench_utils import make_env
from online_agent import OnlineAgent, OnlineConfig
from planning.graph_planner import StateMap
from support.files import save_checkpoint

ANT = 'antmaze-medium-navigate-v0'


class Easy(gymnasium.Wrapper):
    """Episodes of 12 steps; succeeded if the ant's first action is positive."""

    def reset(self, **options):
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action):
        self.first = self.first if self.steps else action[0]
        self.steps += 1
        observation, reward, _, _, info = self.env.step(action)
        return observation, reward, False, self.steps == 12, info | {'success': float(self.first > 0)}


@pytest.fixture
def checkpoints(make_config, tmp_path, monkeypatch):
    """Two agents that differ in the sign of their first action -> their files."""
    monkeypatch.setattr(evaluate, 'make_env', lambda dataset: Easy(make_env(dataset)))
    torch.manual_seed(0)
    paths = []
    for sign in (1, -1):
        agent = OnlineAgent(OfflineAgent(29, make_config()), -np.ones(8), np.ones(8), OnlineConfig(idm_hidden_dim=32))
        torch.nn.init.constant_(agent.acting['inverse_dynamics'].net[-1].weight, 0.0)
        torch.nn.init.constant_(agent.acting['inverse_dynamics'].net[-1].bias, sign * 0.5)
        paths.append(tmp_path / f'{sign}' / 'last.pth')
        save_checkpoint(paths[-1], {'kind': 'online', 'dataset': ANT, 'agent': agent.state_dict(),
                                    'data': {'observation_model': dataclasses.asdict(FULL_STATE)}})
    return paths


def run(checkpoint, *flags):
    fast = ['--episodes_per_task', '3']  # in this process, where make_env is replaced
    evaluate.main(['--checkpoint', str(checkpoint), *fast, *map(str, flags)])
    return json.loads((checkpoint.parent / 'evaluation.json').read_text())


def test_metrics_have_ogbenchs_names_and_intervals(checkpoints):
    metrics = run(checkpoints[0])
    names = ['overall_success', *(f'task{k}_success' for k in range(1, 6))]
    assert all(metrics[f'evaluation/{name}'] == 1.0 for name in names)
    assert metrics['evaluation/task3_low'] < metrics['evaluation/overall_low'] < metrics['evaluation/overall_high'] == 1
    assert (metrics['dataset'], metrics['episodes_per_task'], metrics['seed']) == (ANT, 3, 0)
    assert (checkpoints[0].parent / 'evaluation_paths.png').stat().st_size > 20_000
    assert 'comparison' not in metrics


def test_comparison_is_paired(checkpoints, capsys, monkeypatch):
    seen = []
    real = evaluate.evaluate

    def watch(*args, **kwargs):
        metrics, episodes = real(*args, **kwargs)
        seen.append([(e.task, e.observations[0], e.goal) for e in episodes])
        return metrics, episodes

    monkeypatch.setattr(evaluate, 'evaluate', watch)
    comparison = run(checkpoints[0], '--compare', checkpoints[1])['comparison']
    for ours, theirs in zip(*seen, strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])
    assert comparison['overall'] == {'difference': 1.0, 'low': 1.0, 'high': 1.0, 'only_ours': 15, 'only_theirs': 0,
                                     'p_value': 2 / 2**15}
    assert comparison['task2']['p_value'] == 0.25 and comparison['checkpoint'] == str(checkpoints[1])
    assert 'overall      +100.0' in capsys.readouterr().out
    assert (checkpoints[0].parent / 'evaluation_compared_paths.png').exists()


def test_noise_of_who_rests_needs_a_map(checkpoints):
    with pytest.raises(ValueError, match='--stuck_noise: .* has no map .*add_map'):
        run(checkpoints[0], '--stuck_noise', '1')


def test_noise_of_who_rests_can_be_told_to_each_of_two(checkpoints, monkeypatch):
    """Here all rest at once, and what they do first decides."""
    monkeypatch.setattr('online_agent.STUCK_STEPS', 0)
    saved = evaluate.load_checkpoint(checkpoints[0], 'online')
    agent = OnlineAgent.from_state_dict(saved['agent'])
    centers, none = np.zeros((2, 29), np.float32), np.zeros(0, int)
    agent.state_map = StateMap(centers[0], centers[0] + 1, centers, centers, 1.0, none, none, none, none, none, hop=10)
    save_checkpoint(checkpoints[0], saved | {'agent': agent.state_dict()})

    metrics = run(checkpoints[0], '--stuck_noise', '9', '--compare', checkpoints[0], '--compare_rest_noise', '0')
    assert metrics['stuck_noise'] == 9
    assert 0 < metrics['evaluation/overall_success'] < 1
    assert metrics['comparison']['overall']['difference'] == metrics['evaluation/overall_success'] - 1


def test_a_video_that_cannot_be_made_hurts_nothing(checkpoints, monkeypatch):
    monkeypatch.setattr('figures.videos.find_gl', lambda: (None, {'egl': 'not there'}))
    assert run(checkpoints[0], '--video')['evaluation/overall_success'] == 1.0


def test_the_checkpoint_that_comes_along_finds_its_goals(tmp_path):
    path = Path(evaluate.__file__).parent / 'pretrained' / f'{ANT}.pth'
    assert path.stat().st_size < 6e6
    evaluate.main(['--checkpoint', str(path), '--episodes_per_task', '2', '--seed', '0',
                   '--output', str(tmp_path / 'evaluation.json')])
    metrics = json.loads((tmp_path / 'evaluation.json').read_text())
    assert metrics['evaluation/overall_success'] >= 0.5, 'of about 0.9'


# ---------------------------------------------------------------------------------------------- labels
def test_how_much_labels_explain(make_online, make_agent, tmp_path, capsys):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, 3)).astype(np.float32)
    states = np.zeros((40, 5), np.float32)
    states[:-1, :3] = actions[:-1]  # what the labeler below says is the action
    np.savez(tmp_path / 'data.npz', observations=states, actions=actions, terminals=np.arange(40) == 39)
    np.savez(tmp_path / 'states.npz', observations=states, terminals=np.arange(40) == 39)
    agent = make_online(offline=make_agent())
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': '', 'agent': agent.state_dict(),
                                            'data': {'observation_model': dataclasses.asdict(FULL_STATE)}})
    flags = ['--checkpoint', str(tmp_path / 'last.pth'), '--actions_path']
    with pytest.raises(ValueError, match='no `actions` in it; collect it with --no-state_only'):
        measure_labels.main([*flags, str(tmp_path / 'states.npz')])

    config = measure_labels.LabelConfig(str(tmp_path / 'last.pth'), str(tmp_path / 'data.npz'))
    assert measure_labels.run(config) < 0.5, 'an untrained labeler'
    assert 'of 39 steps' in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_labels.OnlineAgent, 'label', lambda self, steps: steps[:, 0, :3])
        assert measure_labels.run(config) == pytest.approx(1)


def test_where_only_memory_tells_a_gru_does_and_a_network_without_does_not(tmp_path, capsys):
    """Actions are what the state before was; the next state is told by nothing."""
    rng = np.random.default_rng(0)
    for end in '', '-val':
        states = rng.standard_normal((4, 150, 2)).astype(np.float32)
        actions = np.roll(states, 1, axis=1)
        np.savez(tmp_path / f'data{end}.npz', observations=states.reshape(-1, 2), actions=actions.reshape(-1, 2),
                 terminals=np.arange(600) % 150 == 149)
    with pytest.raises(ValueError, match='--actions_path is required'):
        measure_settings.main([])

    config = measure_settings.SettingsConfig(
        str(tmp_path / 'data.npz'), 'pointmaze-medium-navigate-v0', settings='full,noise:3', num_updates=150,
        batch_size=16, hidden_dim=32)
    found = measure_settings.run(config)
    action = {key: r2 for key, (_, r2) in found.items()}
    assert action['full', 10] > 0.7 and action['full', 100] > 0.7
    assert action['full', 0] < 0.2 > action['full', 1]
    assert action['noise:3', 10] < 0.4, 'noise hides it'
    assert all(state < 0.2 for state, _ in found.values())
    assert 'noise:3: ' in capsys.readouterr().out
