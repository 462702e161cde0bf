"""Units: the agent does not depend on the unit or the zero point of any dimension of the states."""

import dataclasses
import re
import shlex
import sys
import types

import gymnasium
import numpy as np
import pytest
import torch
import toy_objects
from gymnasium.spaces import Box

import evaluate
import offline_trainer
import ogbench_utils
import online_trainer
from environments import custom_env
from labeling.corrective_data import find_corrective_transitions
from labeling.labeler import Labeler
from labeling.simulator_labels import ActionSearch, NetworkConfig
from observing import observation_models
from observing.observation_models import FULL_STATE, ObservationModel
from offline_agent import OfflineAgent
from online_agent import OnlineAgent, OnlineConfig
from planning.graph_planner import NO_PATH, GraphPlanner, StateGraph
from planning.objects import find_objects
from support.files import load_checkpoint
from support.tolerances import EPSILON, IGNORED, divisor, find_origin, precision_warning, varies
from tasks import _deviation, build_map
from trajectories import ReplayBuffer, TrajectoryDataset, load_dataset, load_recorded

POWER = 2.0 ** 20  # a unit by which floating-point numbers change without rounding
EXACT = (POWER, 1 / POWER)
SCALES = (1e6, 1e-6)
SHIFT = 1e6


# ---------------------------------------------------------------------------------------------- two robots
def walk_of_point(rng, rows=120):
    """Return states (rows, 4) float64 of a point that walks between random targets, and its actions.

    The dimensions are x and y in metres, the last action, and a noisy voltage.
    """
    state = np.zeros(4)
    state[:2] = rng.uniform(-1, 1, 2)
    target = rng.uniform(-1, 1, 2)
    states, actions = [state], []
    for _ in range(rows - 1):
        if np.abs(target - state[:2]).max() < 0.1:
            target = rng.uniform(-1, 1, 2)
        action = np.clip((target - state[:2]) / 0.05, -1, 1) + 0.2 * rng.standard_normal(2)
        state = step_of_point(state, action, rng)
        states.append(state)
        actions.append(action)
    return np.array(states), np.array(actions)


def step_of_point(state, action, rng):
    return np.array([*state[:2] + 0.05 * action, action[0], 1e-4 * rng.standard_normal()])


def point_data():
    return [walk_of_point(np.random.default_rng(seed))[0] for seed in range(20)]


def point_episodes():
    """Return pairs of states and actions of an agent that makes random steps."""
    episodes = []
    for seed in range(2):
        rng = np.random.default_rng([seed, 1])
        actions = rng.uniform(-1, 1, (60, 2))
        states = [np.zeros(4)]
        for action in actions:
            states.append(step_of_point(states[-1], action, rng))
        episodes.append((np.array(states), actions))
    return episodes


def cube_data():
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    return [toy_objects.play(toy_objects.cubes(rng, 10), rng).astype(float) for rng in rngs]


def cube_episodes():
    """Return pairs of states and actions: the hand's change is the action."""
    episodes = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        actions = rng.uniform(-1, 1, (60, 2))
        states = toy_objects.play(np.full((2, 4), 1.5), rng)[:61].astype(float)
        states[:, :2] = 0.2 * np.concatenate([np.zeros((1, 2)), actions.cumsum(0)])
        states[:, 2] = 0
        episodes.append((states, actions))
    return episodes


ROBOTS = {'point': (point_data, point_episodes, (0, 3)), 'cubes': (cube_data, cube_episodes, (0, 3))}


class Learned:
    """Map, labels and actions of an agent of a robot whose states are `scale` * s + `shift`, through a file."""

    def __init__(self, folder, robot, scale=1.0, shift=0.0):
        make_data, make_episodes, _ = ROBOTS[robot]
        trajectories = make_data()
        states = np.concatenate(trajectories) * scale + shift
        ends = np.cumsum([len(rows) for rows in trajectories]) - 1
        path = folder / 'data.npz'
        np.savez(path, observations=states, terminals=np.isin(np.arange(len(states)), ends))

        # data and offline agent
        sampling = dict(context_length=20, transition_steps=10, discount=0.998)
        self.data, _, source = load_dataset('robot:make', str(path), **sampling)
        self.model = source.observation_model
        torch.manual_seed(0)
        config = offline_trainer.OfflineConfig(**sampling, d_model=16, headdim=16, d_state=8, hidden_dim=16)
        self.offline = OfflineAgent(states.shape[1], config)
        offline_trainer.set_statistics(self.offline, self.data, self.model)
        rng = np.random.default_rng(0)
        for _ in range(2):
            self.offline.update(self.data.sample(2, rng))

        # online agent and its episodes
        online = OnlineConfig(idm_hidden_dim=16, action_scale=1.0, batch_size=2)
        self.map = build_map(self.offline, online, self.data)
        self.agent = OnlineAgent(self.offline, -np.ones(2), np.ones(2), online, self.map)
        replay = ReplayBuffer(states.shape[1], 2, **sampling)
        for episode, actions in make_episodes():
            replay.add(self.observe(episode * scale + shift), actions.astype(np.float32))
        self.replay = replay

        # labels
        pairs = torch.from_numpy(replay.observations[replay.transition_rows[:, None] + np.arange(2)])
        self.r2 = self.agent.labeler.fit(self.agent.encoder.normalize(pairs),
                                         torch.from_numpy(replay.actions[replay.transition_rows]),
                                         np.random.default_rng(0), kernel_updates=10)
        batches = self.agent.open_batches(self.data, replay)
        batches.label_data(self.agent.label)
        self.labels = batches.offline_steps.labels.numpy()
        for _ in range(2):
            self.agent.update(batches.sample(rng))

        # actions of an episode that passes through some states of the data
        rows = np.arange(100)
        states, goals = self.data.observations[rows], self.data.observations[rows[::-1] + 500]
        state = self.agent.initial_state(100)
        self.actions = []
        for _ in range(3):
            actions, state = self.agent.act(states, goals, state)
            self.actions.append(actions)
        self.actions = np.concatenate(self.actions)

    def observe(self, states):
        return self.model.observe(states, np.random.default_rng(0))

    def nodes(self):
        """Return the node, or the configuration and the next rest, of each row of the data."""
        if self.offline.has_objects:
            return np.array([self.map.object_of.tolist(), (self.map.scale > 0).tolist()])
        return GraphPlanner(self.map, self.agent._goal_features).locate(self.data.observations)

    def routes(self):
        if self.offline.has_objects:
            return np.array([len(self.map.placed_objects), self.map.move_timeout])
        planner = GraphPlanner(self.map, self.agent._goal_features)
        return np.stack([planner.route(node) for node in range(0, len(self.map), 10)])


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """learned(robot) -> Learned with states as they are, made once."""
    made = {}

    def learn(robot):
        if robot not in made:
            made[robot] = Learned(tmp_path_factory.mktemp(robot), robot)
        return made[robot]

    return learn


@pytest.mark.parametrize('factor', EXACT)
@pytest.mark.parametrize('robot', ROBOTS)
def test_units_that_round_nothing_change_no_bit(robot, factor, learned, tmp_path):
    before = learned(robot)
    scale = np.ones(before.data.observations.shape[1])
    scale[list(ROBOTS[robot][2])] = factor
    after = Learned(tmp_path, robot, scale)
    assert before.offline.has_objects == (robot == 'cubes') and before.r2 > 0.8
    for name in ('nodes', 'routes'):
        assert np.array_equal(getattr(before, name)(), getattr(after, name)()), name
    assert before.r2 == after.r2
    assert np.array_equal(before.labels, after.labels)
    assert np.array_equal(before.actions, after.actions)
    for name, tensor in before.agent.nets.state_dict().items():
        assert torch.equal(tensor, after.agent.nets.state_dict()[name]), name

    # the perturbations of corrective data
    perturbed = []
    for one in (before, after):
        scales = find_objects(one.data) * (robot == 'cubes') / one.data.statistics()[1]
        found = find_corrective_transitions(one.data, one.replay, scales, one.agent.label, np.random.default_rng(0))
        perturbed.append(found.states.numpy())
    assert np.array_equal((perturbed[0] * scale).astype(np.float32), perturbed[1])


@pytest.mark.parametrize('change', [*SCALES, 'shift'])
@pytest.mark.parametrize('robot, dimension', [(robot, dimension) for robot in ROBOTS for dimension in ROBOTS[robot][2]])
def test_units_and_zero_points_change_nothing_beyond_rounding(robot, dimension, change, learned, tmp_path):
    before = learned(robot)
    size = before.data.observations.shape[1]
    scale, shift = np.ones(size), np.zeros(size)
    if change == 'shift':
        shift[dimension] = SHIFT
    else:
        scale[dimension] = change
    after = Learned(tmp_path, robot, scale, shift)
    assert np.mean(before.nodes() == after.nodes()) > 0.98
    assert np.mean(before.routes() == after.routes()) > 0.95
    assert after.r2 == pytest.approx(before.r2, abs=0.01)
    assert np.abs(before.labels - after.labels).mean() < 0.01
    assert np.mean(np.abs(before.actions - after.actions).max(1) < 0.02) > 0.95


# ------------------------------------------------------------------------------------------ the border
class Room(gymnasium.Env):
    """A point in a square room; its states are scale * s + origin."""

    action_space = Box(-1.0, 1.0, (2,))
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, scale, origin):
        self.scale, self.origin = np.array(scale), np.array(origin)

    def show(self, position):
        return position * self.scale + self.origin

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self.show(self.position), {'goal': self.show(self.goal)}

    def step(self, action):
        self.position = np.clip(self.position + 0.1 * action, -1, 1)
        success = bool(np.abs(self.position - self.goal).max() < 0.15)
        return self.show(self.position), 0.0, success, False, {'success': success}


def record_room(env, path, trajectories=6):
    """Write a file of states of a room, float64."""
    states = []
    for seed in range(trajectories):
        env.reset(seed=seed)
        states.append(env.show(env.position))
        for step in range(60):
            if step % 20 == 0:
                env.goal = env.np_random.uniform(-1, 1, 2)
            states.append(env.step(np.clip((env.goal - env.position) / 0.1, -0.5, 0.5))[0])
    np.savez(path, observations=np.array(states), terminals=np.arange(len(states)) % 61 == 60)


FLAGS = shlex.split('--d_model 16 --headdim 16 --d_state 8 --hidden_dim 16 --context_length 20 '
                    '--transition_steps 10 --batch_size 4 --num_updates 2 --no-maze_figures')
ONLINE_FLAGS = shlex.split('--idm_hidden_dim 16 --batch_size 2 --num_envs 1 --random_steps 50 --max_steps 50 '
                           '--initial_updates 2 --final_eval_episodes 1')


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(scale, origin) -> folder of an online run in a room of these units."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(custom_env, '_checked', set())
    monkeypatch.setattr(offline_trainer, 'plot_curves', lambda *_: None)
    monkeypatch.setattr(online_trainer, 'plot_curves', lambda *_: None)
    monkeypatch.setattr(online_trainer, 'draw_evaluation', lambda *_: None)

    def run(scale, origin):
        name = f'room{abs(hash((scale, origin)))}'
        module = types.ModuleType(name)
        module.make = lambda: gymnasium.wrappers.TimeLimit(Room(scale, origin), 40)
        monkeypatch.setitem(sys.modules, name, module)
        record_room(Room(scale, origin), f'{name}.npz')
        common = ['--env', f'{name}:make']
        offline, online = tmp_path / f'{name}_off', tmp_path / f'{name}_on'
        offline_trainer.main([*common, '--dataset_path', f'{name}.npz', '--save_dir', str(offline), *FLAGS])
        online_trainer.main([*common, '--offline_checkpoint', str(offline / 'last.pth'), '--save_dir', str(online),
                             *ONLINE_FLAGS])
        return online

    return run


def test_a_room_far_from_zero_is_learned_relative_to_its_origin(train, capsys):
    origin = (500_000.0, 4_500_000.0)
    checkpoint = load_checkpoint(train((1.0, 1.0), origin) / 'last.pth', 'online')
    captured = capsys.readouterr()
    assert 'too coarse' not in captured.err
    assert float(re.search(r'labels: R² (\S+)', captured.out)[1]) > 0.7

    # the checkpoint keeps the origin, and states are relative to it, in data and episodes
    model = ObservationModel.from_dict(checkpoint['data']['observation_model'])
    assert np.allclose(model.origin, origin, atol=1)
    assert np.abs(checkpoint['replay']['observations'].numpy()).max() < 2.5
    assert np.abs(checkpoint['agent']['offline']['nets']['encoder.mean'].numpy()).max() < 1

    # evaluation, and the data of a resumed run, keep the origin of the checkpoint
    metrics, episodes, _ = evaluate.measure(
        evaluate.EvaluateConfig(episodes_per_task=2, num_envs=1), 'x', checkpoint, checkpoint['dataset'],
        evaluate.ActOverrides())
    assert all(np.abs(episode.observations).max() < 2.5 for episode in episodes)
    agent = OfflineAgent.from_state_dict(checkpoint['agent']['offline'])
    data, source = load_recorded(checkpoint['data'], 'x', agent, observation_model=model)
    assert source.observation_model.origin == model.origin and np.abs(data.observations).max() < 2.5


def test_a_saved_model_keeps_its_origin_with_other_data():
    saved = dataclasses.asdict(FULL_STATE.with_origin(np.zeros((3, 2))))
    plain = ObservationModel.from_dict(saved)
    assert plain.with_origin(np.full((9, 2), 1e9) + np.arange(9)[:, None]).origin == ()


def test_origin_is_zero_unless_float64_states_need_one():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((500, 4)) * [1, 1e-3, 1, 0] + [3, 1, 1e7, 1e9]
    origin = find_origin(states)
    assert origin[[0, 3]].tolist() == [0, 0]
    assert origin[[1, 2]] == pytest.approx([1, 1e7], rel=1e-3)
    assert not find_origin(states.astype(np.float32)).any()
    assert find_origin(np.arange(2_000_000_000, 2_000_000_100)[:, None]) == pytest.approx(2_000_000_049.5)


def test_wrapped_environment_subtracts_the_origin_in_float64():
    model = ObservationModel(origin=(4_500_000.0, 0.0))
    env = model.wrap(Room((1.0, 1.0), (4_500_000.0, 0.0)))
    state, info = env.reset(seed=0)
    room = env.unwrapped
    assert state.dtype == np.float32 and np.allclose(state, room.position, atol=1e-7)
    assert np.allclose(info['goal'], room.goal, atol=1e-7)
    state = env.step(np.array([0.01, 0.01]))[0]
    assert np.allclose(state, room.position, atol=1e-7)
    assert ObservationModel(origin=()).wrap(room) is room


def test_an_environment_that_rounds_far_from_zero_gives_one_warning(capsys):
    observation_models._warn_of_float32.cache_clear()
    rounding = gymnasium.wrappers.TransformObservation(Room((1.0, 1.0), (4.5e6, 0.0)), np.float32, None)
    for origin, count in (((), 0), ((4.5e6, 0.0), 1)):
        for _ in range(2):
            ObservationModel(origin=origin).wrap(rounding).reset(seed=0)
        assert capsys.readouterr().err.count('the environment returns float32') == count


# ---------------------------------------------------------------------------------------- warnings of precision
def utm(dtype):
    rng = np.random.default_rng(0)
    states = np.cumsum(0.02 * rng.standard_normal((1000, 2)), 0) + [5e5, 4.5e6]
    return states.astype(dtype)


def test_check_and_trainer_warn_about_steps_that_float32_has_lost(tmp_path, capsys):
    for dtype, lost in ((np.float32, True), (np.float64, False)):
        path = tmp_path / f'{np.dtype(dtype)}.npz'
        np.savez(path, observations=utm(dtype), terminals=np.arange(1000) % 100 == 99)
        ogbench_utils.main(['check', str(path)])
        out = capsys.readouterr().out
        assert 'good' in out and ('too coarse' in out) == lost
        if lost:
            assert 'median step 0.5, spacing 0.5' in out and 'record them in float64' in out
        load_dataset('robot:make', str(path), context_length=10, transition_steps=5)
        assert ('too coarse' in capsys.readouterr().err) == lost


@pytest.mark.parametrize('states', [
    np.cumsum(np.random.default_rng(0).standard_normal((500, 2)), 0),
    np.random.default_rng(0).integers(0, 2, (500, 2)),  # switches
    0.02 + 0.1 * np.repeat(np.arange(10), 50)[:, None] + 2e-9 * np.random.default_rng(0).standard_normal((500, 2)),
    np.zeros((500, 2)),
], ids=['a walk', 'switches', 'jitter at rest', 'zeros'])
def test_ordinary_float32_states_give_no_warning(states):
    assert precision_warning('x.npz', states.astype(np.float32), np.array([499])) == ''


@pytest.mark.parametrize('unit', [1e-12, 1e-7, 1.0, 1e9])
def test_check_counts_constant_dimensions_in_any_unit(unit, tmp_path, capsys):
    states = np.random.default_rng(0).standard_normal((100, 3)) * unit
    states[:, 1] = 1e9  # rounding of its mean is no variation
    path = tmp_path / 'some.npz'
    np.savez(path, observations=states, terminals=np.arange(100) % 50 == 49)
    ogbench_utils.main(['check', str(path)])
    assert '; 1 dimension(s) never vary' in capsys.readouterr().out
    load_dataset('robot:make', str(path), context_length=10, transition_steps=5)
    assert '1 dimension(s) of `observations` never vary (1)' in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- tolerances
def test_varies_and_divisor_take_arrays_and_tensors():
    for make in (np.array, torch.tensor):
        std, mean = make([1e-30, 0.0, 1e-9, 0.5]), make([0.0, 0.0, 1.0, 4.5e6])
        assert varies(std, mean).tolist() == [True, False, False, False]
        assert divisor(std, mean).tolist() == pytest.approx([1e-30, IGNORED, IGNORED, IGNORED])
    assert varies(1.1 * EPSILON, 1.0)


@pytest.mark.parametrize('unit', [1e-9, 1.0])
def test_deviation_of_a_batch_has_no_unit(unit):
    values = unit * torch.randn(50)
    torch.testing.assert_close(values / _deviation(values), values / values.std())
    assert ((values - values) / _deviation(values - values) == 0).all()


@pytest.mark.parametrize('step', [0.1, 1e-3, 1e-4, 1e-5])
def test_labels_do_not_depend_on_the_control_rate(step):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (500, 2))
    states = rng.uniform(-1, 1, (500, 3))
    successors = states.copy()
    successors[:, :2] += step * actions
    successors[:, 2] = rng.uniform(-1, 1, 500)  # a noisy sensor
    pairs = torch.tensor(np.stack([states, successors], 1), dtype=torch.float32)
    labeler = Labeler(3, 2)
    assert labeler.fit(pairs, torch.tensor(actions), rng, kernel_updates=30) > 0.99


@pytest.mark.parametrize('unit', [1e-9, 1.0])
def test_simulator_labels_have_no_unit(unit):
    torch.manual_seed(0)
    features, changes = torch.randn(50, 3), torch.randn(50, 2)
    search = ActionSearch(unit * features, unit * changes, 2, NetworkConfig(8))
    network = search._new_network(unit * features, unit * changes, changes)
    reference = ActionSearch(features, changes, 2, NetworkConfig(8))
    for ours, plain in ((search.change_std, reference.change_std), (network.context_std, features.std(0))):
        torch.testing.assert_close(ours, unit * plain, rtol=1e-4, atol=0)


def test_slowness_has_no_unit():
    states = np.concatenate(point_data())
    ends = np.arange(119, 2400, 120)
    slowness = [TrajectoryDataset((unit * states).astype(np.float32), ends - 119, ends, transition_steps=10).slowness()
                for unit in (1.0, 2.0 ** -60)]
    assert np.array_equal(*slowness) and slowness[0].max() == 1


def test_find_objects_with_short_trajectories_finds_none():
    # trajectories of at most as many steps as an object must rest
    rng = np.random.default_rng(0)
    hand = rng.standard_normal((300, 9)).cumsum(1)
    is_before = np.arange(9) < rng.integers(0, 18, (300, 1))
    box = np.where(is_before, rng.integers(0, 3, (300, 1)), rng.integers(0, 3, (300, 1)))
    states = np.stack([hand, box], 2).reshape(-1, 2).astype(np.float32)
    ends = np.arange(8, 2700, 9)
    data = TrajectoryDataset(states, ends - 8, ends, context_length=5, transition_steps=2)
    assert not find_objects(data).any()


def test_value_iteration_reaches_nodes_of_tiny_value(monkeypatch):
    # a chain of 30 edges of 10,000 steps, with a jump source elsewhere: the farthest value is 1e-13
    from planning.graph_planner import JumpModel

    count = 31
    nodes = np.arange(count, dtype=np.float32)
    one = np.array([count - 1], np.int32)
    edges = np.arange(count - 1, dtype=np.int32)
    none = np.zeros(0, np.int32)
    points = np.stack([nodes, nodes], 1)
    graph = StateGraph(mean=np.zeros(2, np.float32), scale=np.ones(2, np.float32), centers=points, states=points,
                       radius=1.0, sources=edges, targets=edges + 1, costs=np.full(count - 1, 1e4, np.float32),
                       near_sources=none, near_targets=none, hop=10,
                       jumps=JumpModel(one, np.zeros(1, np.int32), np.zeros(1, np.int32), one,
                                       np.ones(1, np.float32)))
    planner = GraphPlanner(graph, lambda states: states)
    assert planner.route(count - 1)[0] == 1 != NO_PATH
