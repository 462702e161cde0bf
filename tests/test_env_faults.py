"""SafeEnv: a fault ends the episode and recreates the environment; five consecutive ones end the run."""

import types

import numpy as np
import pytest

import rollouts
from environments.safe_env import SafeEnv, open_envs
from ogbench_utils import make_env, reset_env
from online_trainer import OnlineTrainConfig
from rollouts import Collector, evaluate, run_episodes

BOX = types.SimpleNamespace(low=-np.ones(2), high=np.ones(2), shape=(2,), seed=lambda seed: None)


class CountingEnv:
    """Count six steps per episode and log instances and resets.

    `fault(episode, step)` may raise, or return another observation.
    """

    def __init__(self, log, fault):
        self.log = log
        self.fault = fault
        self.observation_space = types.SimpleNamespace(shape=(3,))
        self.action_space = BOX
        self.unwrapped = types.SimpleNamespace(num_tasks=5)
        log.append('make')

    def reset(self, seed=None, options=None):
        self.step_number = 0
        self.log.append('reset')
        return self._observe(), {'goal': np.zeros(3)}

    def step(self, action):
        self.step_number += 1
        return self._observe(), 0.0, False, self.step_number == 6, {'success': 1.0}

    def _observe(self):
        observation = self.fault(self.log.count('reset'), self.step_number)
        return np.full(3, self.step_number, np.float32) if observation is None else observation


def raise_at(*episode_steps):
    """Return a fault that raises in the given pairs of episode and step."""

    def fault(*episode_step):
        if episode_step in episode_steps:
            raise RuntimeError('boom')

    return fault


@pytest.fixture
def idle(constant_agent):
    return constant_agent([0.0, 0.0])


@pytest.fixture
def episodes_of(idle):
    """episodes_of(fault, count, n_envs) -> (episodes, log of the environments)"""

    def run(fault, count, n_envs=1):
        log = []
        envs = open_envs('', n_envs, lambda dataset: CountingEnv(log, fault))
        return [*run_episodes(envs, ((1, seed) for seed in range(count)), idle)], log

    return run


def test_exception_ends_the_episode_and_recreates_the_environment(capsys, episodes_of):
    episodes, log = episodes_of(raise_at((2, 4)), 3)
    assert [episode.length for episode in episodes] == [6, 3, 6]
    assert [episode.fault for episode in episodes] == ['', 'boom', '']
    assert [episode.success for episode in episodes] == [1, 0, 1]
    np.testing.assert_array_equal(episodes[1].observations[:, 0], [0, 1, 2, 3])  # the fault adds none
    assert log == ['make', 'reset', 'reset', 'make', 'reset']
    assert 'environment fault' in (err := capsys.readouterr().err) and 'RuntimeError: boom' in err


def test_nan_observation_never_reaches_an_episode(episodes_of):
    nan = np.array([0, np.nan, 0], np.float32)
    episodes, log = episodes_of(lambda episode, step: nan if (episode, step) == (1, 1) else None, 2)
    assert [episode.length for episode in episodes] == [0, 6] and log.count('make') == 2
    assert episodes[0].observations.shape == (1, 3) and episodes[0].actions.shape == (0, 2)


def test_failed_reset_is_retried(episodes_of):
    episodes, log = episodes_of(raise_at((1, 0), (2, 0)), 1)
    assert episodes[0].length == 6 and log == ['make', 'reset', 'make', 'reset', 'make', 'reset']


def test_five_consecutive_faults_raise_the_cause(episodes_of):
    five = raise_at(*((episode, 3) for episode in range(2, 7)))
    with pytest.raises(OSError, match='failed 5 times in a row, at last with RuntimeError: boom'):
        episodes_of(five, 9)

    four = raise_at(*((episode, 3) for episode in range(2, 6)))
    assert len(episodes_of(four, 9)[0]) == 9


def test_complete_episode_resets_the_count_of_faults(episodes_of):
    assert len(episodes_of(raise_at(*((episode, 3) for episode in range(2, 20, 2))), 20)[0]) == 20


def test_environments_share_the_count_of_faults(episodes_of):
    with pytest.raises(OSError, match='5 times in a row'):
        episodes_of(raise_at(*((episode, 1) for episode in range(20))), 9, n_envs=8)


def test_evaluation_counts_a_fault_as_failure(idle):
    log = []
    envs = open_envs('', 1, lambda dataset: CountingEnv(log, raise_at((2, 1))))
    metrics = evaluate(idle, envs, 1, seed=0)[0]
    assert metrics['evaluation/task2_success'] == 0 and metrics['evaluation/overall_success'] == 0.8


def test_collector_reports_faults_of_a_round(idle, monkeypatch):
    config = OnlineTrainConfig(
        max_episodes=9, num_envs=1, random_steps=12, epsilon_start=0, epsilon_end=0, action_noise_start=0,
        action_noise_end=0)
    exploration = types.SimpleNamespace(biased=np.zeros(1, bool))
    monkeypatch.setattr(idle, 'explorer', lambda epsilon, rng: exploration, raising=False)
    act = idle.act
    monkeypatch.setattr(idle, 'act', lambda observations, goals, state, *_: act(observations, goals, state))

    monkeypatch.setattr(rollouts, 'ROUND_STEPS', 1)
    log = []
    collector = Collector(config, open_envs('', 1, lambda dataset: CountingEnv(log, raise_at((2, 4)))), idle)
    progress = types.SimpleNamespace(update=lambda n: None)
    rounds = [collector.round(progress).metrics for _ in range(2)]
    assert rounds[0]['collect/faults'] == 1 and 'collect/faults' not in rounds[1]
    assert rounds[0]['collect/length'] == rounds[1]['collect/length'] == 6  # of complete episodes
    assert collector.steps == 6 + 3 + 2 + 6  # one of the twelve steps failed


def test_mujoco_instability_is_a_fault_without_a_log_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = SafeEnv(lambda: make_env('antmaze-medium-navigate-v0'), [])
    start = reset_env(env, 1, 0)[0]
    first = env.env
    assert 'fault' not in env.step(np.zeros(8, np.float32))[-1]
    env.env.unwrapped.data.qvel[:] = 1e12
    *_, truncated, info = env.step(np.zeros(8, np.float32))
    assert truncated and 'unstable' in info['fault'] and env.env is not first
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(reset_env(env, 1, 0)[0], start)
    env.step(np.zeros(8, np.float32))
    assert len(env.faults) == 1
