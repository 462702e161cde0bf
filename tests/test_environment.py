"""Resets, episodes and evaluation in OGBench's antmaze, with shortened episodes."""

import types

import gymnasium
import numpy as np
import pytest
import torch

import rollouts
from observing.observation_models import ObservationModel
from offline_agent import OfflineAgent, OfflineConfig
from ogbench_utils import episode_seed, make_env, reset_env
from online_agent import OnlineAgent, OnlineConfig
from online_trainer import OnlineTrainConfig
from rollouts import Collector, evaluate, run_episodes
from tasks import build_map
from trajectories import TrajectoryDataset

DATASET = 'antmaze-medium-navigate-v0'
LIMIT = 12


class ShortEnv(gymnasium.Wrapper):
    """Truncate after `limit` steps and count all steps; `success(task, step)` replaces that of OGBench."""

    def __init__(self, limit=LIMIT, success=None):
        super().__init__(make_env(DATASET))
        self.limit = limit
        self.success = success
        self.total = 0
        self.tasks = []

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        self.tasks.append(options['task_id'])
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        self.total += 1
        if self.success:
            info['success'] = self.success(self.tasks[-1], self.steps)
        return observation, reward, terminated, truncated or self.steps >= self.limit, info


class StubAgent:
    """Act on observation, goal and the number of steps since reset; record the inputs of `act`."""

    def __init__(self):
        self.inputs = []

    def initial_state(self, batch_size):
        return np.zeros(batch_size, int)

    def reset_state(self, state, rows):
        return np.where(rows, 0, state)

    def read_goal(self, goal):
        return goal

    def act(self, observations, goals, state, *exploration):
        self.inputs.append((observations.copy(), goals.copy(), state.copy()))
        phase = observations[:, :8] + goals[:, :1] + state[:, None]
        return np.sin(phase).astype(np.float32), state + 1

    def explorer(self, epsilon, rng):
        return types.SimpleNamespace(biased=np.zeros(3, bool))


@pytest.fixture(scope='module')
def envs():
    return [ShortEnv() for _ in range(3)]


@pytest.fixture(scope='module')
def recurrent_agent():
    """Return a small untrained agent that predicts dropped observations from the history."""
    torch.manual_seed(0)
    sizes = dict(context_length=8, d_model=32, d_state=8, headdim=16, hidden_dim=32)
    offline = OfflineAgent(29, OfflineConfig(transition_steps=4, discount=0.998, **sizes))
    offline.has_dropout = True
    config = OnlineConfig(idm_hidden_dim=32)

    # a graph of random states
    observations = np.random.default_rng(0).standard_normal((60, 29)).astype(np.float32)
    data = TrajectoryDataset(observations, np.array([0, 30]), np.array([29, 59]))
    data_map = build_map(offline, config, data)
    return OnlineAgent(offline, -np.ones(8), np.ones(8), config, data_map)


def drop_observations(envs):
    """Return environments that drop half of the observations."""
    model = ObservationModel('dropped:0.5', drop_rate=0.5)
    return [model.wrap(env) for env in envs]


def run(envs, jobs, agent=None, **options):
    """Return all episodes in order of their jobs."""
    return sorted(run_episodes(envs, jobs, agent or StubAgent(), **options), key=lambda episode: episode.job)


def assert_same_episodes(a, b):
    for one, other in zip(a, b, strict=True):
        for key in ('observations', 'actions', 'goal'):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key), strict=True)
        for key in ('task', 'length', 'success', 'reward', 'cut'):
            assert getattr(one, key) == getattr(other, key), key

# ---------------------------------------------------------------------------------------------------- resets
@pytest.mark.parametrize('task', [1, 4])
def test_reset_env_depends_on_task_and_seed_only(envs, task):
    env, expected = envs[0], reset_env(make_env(DATASET), task, 5)
    for disturb in (lambda: np.random.seed(99), lambda: reset_env(env, 3, 8), env.action_space.sample,
                    lambda: [env.step(env.action_space.sample()) for _ in range(5)]):
        reset_env(env, 2, 1)
        disturb()
        for value, same in zip(reset_env(env, task, 5), expected, strict=True):
            np.testing.assert_array_equal(value, same, strict=True)
    assert expected[0].dtype == expected[1].dtype == np.float32 and expected[1].shape == (29,)


def test_reset_env_gives_another_start_and_goal_for_another_seed(envs):
    one, other = reset_env(envs[0], 1, 5), reset_env(envs[0], 1, 6)
    for a, b in zip(one, other, strict=True):
        assert np.all(a[:2] != b[:2])  # position
        assert np.any(a[2:] != b[2:])  # joints
        assert np.abs(a[:2] - b[:2]).max() <= 2  # the same cell: the noise of each is at most 1


def test_episode_seeds_are_32_bit_and_differ():
    seeds = [episode_seed(*entropy) for entropy in np.ndindex(5, 5, 20)]
    assert len(set(seeds)) == 500 and all(0 <= seed < 2**32 for seed in seeds)
    assert max(seeds) > 2**31  # every generator of the environment must accept it
    assert episode_seed(1, 2, 3) == episode_seed(1, 2, 3)


def test_reset_env_accepts_the_largest_seed(envs):
    first = reset_env(envs[0], 1, 2**32 - 1)
    np.testing.assert_array_equal(reset_env(envs[0], 1, 2**32 - 1), first)

# -------------------------------------------------------------------------------------------------- episodes
def test_episode_matches_a_replay_of_its_actions(envs):
    episode = run(envs, [(2, 11), (3, 12), (4, 13)])[1]
    env = make_env(DATASET)
    observation, goal = reset_env(env, 3, 12)
    observations, reward = [observation], 0.0
    for action in episode.actions:
        observation, r, _, _, _ = env.step(action)
        observations.append(observation.astype(np.float32))
        reward += r
    np.testing.assert_array_equal(episode.observations, np.stack(observations), strict=True)
    np.testing.assert_array_equal(episode.goal, goal, strict=True)
    assert (episode.task, episode.length, episode.reward, episode.cut) == (3, LIMIT, reward, False)
    assert episode.observations.shape == (LIMIT + 1, 29) and episode.actions.shape == (LIMIT, 8)


def test_agent_gets_states_goals_and_a_reset_state(envs):
    agent = StubAgent()
    jobs = [(1, 21), (2, 22), (3, 23), (4, 24)]
    episodes = run(envs, jobs, agent)
    for (task, seed), episode in zip(jobs, episodes, strict=True):
        row, first = episode.job % 3, LIMIT * (episode.job // 3)
        observation, goal = reset_env(envs[0], task, seed)
        np.testing.assert_array_equal(goal[:2], np.float32(envs[0].unwrapped.cur_goal_xy))
        for t in range(LIMIT):
            observations, goals, state = agent.inputs[first + t]
            np.testing.assert_array_equal(goals[row], goal)
            np.testing.assert_array_equal(observations[row], episode.observations[t])
            assert state[row] == t
        np.testing.assert_array_equal(episode.observations[0], observation)
    assert len(agent.inputs) == 2 * LIMIT
    assert {observations.shape for observations, _, _ in agent.inputs} == {(3, 29)}  # including idle rows


def test_actions_do_not_depend_on_other_episodes(recurrent_agent, monkeypatch):
    envs = drop_observations([ShortEnv(20), ShortEnv(7), ShortEnv(14)])
    a, b, c, d = (1, 31), (2, 32), (3, 33), (4, 34)  # d follows b in the second environment
    busy = run(envs, [a, b, c, d], recurrent_agent)
    assert [episode.length for episode in busy] == [20, 7, 14, 7]
    assert_same_episodes(run(envs, [a], recurrent_agent), busy[:1])
    assert_same_episodes(run(envs, [a, d, c], recurrent_agent), [busy[0], busy[3], busy[2]])

    # without resets, the state of b has an effect on d
    monkeypatch.setattr(recurrent_agent, 'reset_state', lambda state, rows: state)
    without_resets = run(envs, [a, b, c, d], recurrent_agent)
    assert np.any(without_resets[3].actions != busy[3].actions)

    # constant actions show that actions have an effect
    def run_constant(value):
        return run(envs, [a], act=lambda o, g, state: (np.full((3, 8), value, np.float32), state))[0]

    assert np.any(run_constant(0).observations != run_constant(1).observations)


def test_run_episodes_takes_jobs_from_a_generator_on_demand(envs):
    requested = []

    def jobs():
        for number in range(1, 100):
            requested.append(number)
            yield number % 5 + 1, number

    episodes = run(envs, jobs(), max_steps=4 * LIMIT)
    listed = [(2, 1), (3, 2), (4, 3), (5, 4), (1, 5), (2, 6)]
    assert_same_episodes(episodes, run(envs, listed, max_steps=4 * LIMIT))
    assert len(requested) == 6 and len(episodes) == 6
    assert run(envs, iter([])) == []


@pytest.mark.parametrize('max_steps', [2, 3, 4, 20, 36, 37, 41, 100])
def test_max_steps_is_a_hard_limit_and_flags_cut_episodes(envs, max_steps):
    before = sum(env.total for env in envs)
    episodes = run(envs, ((1, seed) for seed in range(1000)), max_steps=max_steps)
    used = sum(env.total for env in envs) - before
    assert max_steps - len(envs) < used <= max_steps
    assert sum(episode.length for episode in episodes) == used  # every step is in an episode
    for episode in episodes:
        assert len(episode.observations) == episode.length + 1 == len(episode.actions) + 1
        assert episode.length <= LIMIT and (episode.cut or episode.length == LIMIT)
    complete = used // 3 // LIMIT * 3
    assert [episode.cut for episode in episodes[complete:]] == [True] * (len(episodes) - complete)
    assert not any(episode.cut for episode in episodes[:complete - 3])


def collect_config(**changes):
    """Return an OnlineTrainConfig without random steps and exploration, for three environments."""
    quiet = dict(epsilon_start=0, epsilon_end=0, action_noise_start=0, action_noise_end=0)
    return OnlineTrainConfig(**(dict(seed=3, num_envs=3, random_steps=0) | quiet | changes))


def test_collector_takes_uniform_random_steps(envs):
    """The random steps end after `random_steps`, and their episodes count."""
    collector = Collector(collect_config(random_steps=890, random_range=0.5), envs, StubAgent())
    counted = []
    episodes = collector.round(types.SimpleNamespace(update=counted.append)).episodes
    assert [episode.cut for episode in episodes] == [False] * 72 + [True] * 3
    assert (collector.steps, collector.episodes, sum(counted)) == (888, 75, 75)

    # uniform and independent
    actions = np.stack([episode.actions for episode in episodes if not episode.cut])
    assert actions.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.1) and np.abs(actions).max() <= 0.5
    autocorrelation = np.mean(actions[:, 1:] * actions[:, :-1]) / np.mean(np.square(actions))
    assert autocorrelation == pytest.approx(0, abs=0.05)


def test_collector_clips_random_steps_to_the_action_space(envs):
    collector = Collector(collect_config(random_steps=90, random_range=1.5), envs, StubAgent())
    episodes = collector.round(types.SimpleNamespace(update=lambda n: None)).episodes
    sizes = np.abs(np.concatenate([episode.actions for episode in episodes]))
    assert sizes.max() == 1 and (sizes == 1).mean() == pytest.approx(1 / 3, abs=0.1)


def test_collector_counts_episodes_until_its_budget_is_spent(envs, monkeypatch):
    """A round has one episode per environment if these are about ROUND_STEPS, and the last round the rest."""
    monkeypatch.setattr(rollouts, 'ROUND_STEPS', 4 * LIMIT)
    collector = Collector(collect_config(max_episodes=7), envs, StubAgent())
    counted = []
    progress = types.SimpleNamespace(update=counted.append)
    rounds = []
    while not collector.done:
        rounds.append(collector.round(progress).episodes)
    assert [len(episodes) for episodes in rounds] == [3, 3, 1]
    assert all(episode.length == LIMIT and not episode.cut for episodes in rounds for episode in episodes)
    assert [episode.task for episodes in rounds for episode in episodes] == [1, 2, 3, 4, 5, 1, 2]
    assert (collector.steps, collector.episodes, sum(counted)) == (7 * LIMIT, 7, 7)


def test_rounds_of_short_episodes_have_more_of_them(envs, monkeypatch):
    monkeypatch.setattr(rollouts, 'ROUND_STEPS', 6 * LIMIT)
    collector = Collector(collect_config(max_episodes=20), envs, StubAgent())
    progress = types.SimpleNamespace(update=lambda n: None)
    assert [len(collector.round(progress).episodes) for _ in range(4)] == [3, 6, 6, 5]


def test_run_episodes_cuts_none_without_a_limit(envs):
    assert not any(episode.cut for episode in run(envs, [(1, seed) for seed in range(5)]))
    assert not any(episode.cut for episode in run(envs, [(1, seed) for seed in range(5)], max_steps=1000))

# ------------------------------------------------------------------------------------------------ evaluation
def test_evaluation_is_deterministic(envs, recurrent_agent):
    envs = drop_observations(envs)
    metrics, episodes = evaluate(recurrent_agent, envs, 2, seed=4)
    np.random.seed(1)
    reset_env(envs[1], 2, 77)
    envs[1].step(envs[1].action_space.sample())
    again, same = evaluate(recurrent_agent, envs, 2, seed=4)
    assert metrics == again
    assert_same_episodes(episodes, same)
    others = evaluate(recurrent_agent, envs, 2, seed=5)[1]
    for episode, other in zip(episodes, others, strict=True):
        assert np.any(episode.observations != other.observations) and np.any(episode.goal != other.goal)


def test_evaluation_starts_and_goals_depend_on_the_seed_only(recurrent_agent):
    few = evaluate(StubAgent(), [ShortEnv(2)], 1, seed=4)[1]
    many = evaluate(recurrent_agent, [ShortEnv(3) for _ in range(4)], 3, seed=4)[1]
    for one, other in zip(few, many[::3], strict=True):
        assert one.task == other.task
        np.testing.assert_array_equal(one.goal, other.goal)
        np.testing.assert_array_equal(one.observations[0], other.observations[0])
    assert len(np.unique([episode.observations[0] for episode in many], axis=0)) == 15


def test_evaluation_covers_all_tasks_with_metrics_of_ogbench():
    class Progress:
        count = 0

        def update(self):
            self.count += 1

    progress, envs = Progress(), [ShortEnv(4), ShortEnv(8)]
    metrics, episodes = evaluate(StubAgent(), envs, 3, seed=0, progress=progress)
    assert [episode.task for episode in episodes] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert [episode.job for episode in episodes] == list(range(15)) and progress.count == 15
    assert sorted(task for env in envs for task in env.tasks) == [episode.task for episode in episodes]
    assert set(metrics) == {'evaluation/overall_success', 'evaluation/episode_length',
                            *(f'evaluation/task{task}_success' for task in range(1, 6))}
    assert metrics['evaluation/episode_length'] == np.mean([episode.length for episode in episodes])
    assert len({tuple(episode.goal[:2].round(-1)) for episode in episodes[::3]}) > 1  # positions differ


def test_success_is_that_of_the_last_step():
    def success(task, step):
        at_end = step == LIMIT
        return {1: at_end, 2: step == 5, 3: at_end or step == 2, 4: not at_end, 5: 0.0}[task]

    metrics, episodes = evaluate(StubAgent(), [ShortEnv(success=success) for _ in range(2)], 2, seed=0)
    assert [metrics[f'evaluation/task{task}_success'] for task in range(1, 6)] == [1, 0, 1, 0, 0]
    assert metrics['evaluation/overall_success'] == pytest.approx(0.4)
    assert all(isinstance(episode.success, float) for episode in episodes)
    assert [episode.reached for episode in episodes[::2]] == [1, 1, 1, 1, 0]


def test_success_ends_an_episode_of_ogbench():
    """An ant that starts at its goal succeeds in the first step."""
    class OnGoal(ShortEnv):
        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed, options=options)
            maze = self.unwrapped
            maze.set_state(np.append(maze.cur_goal_xy, maze.data.qpos[2:]), maze.data.qvel)
            return observation, info

    metrics, episodes = evaluate(StubAgent(), [OnGoal(), OnGoal()], 1, seed=0)
    assert metrics['evaluation/overall_success'] == 1
    assert [(episode.length, episode.cut) for episode in episodes] == [(1, False)] * 5
