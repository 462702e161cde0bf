"""The border to environments: faults at every step, copies, closing, instances, tasks, limits and repeated resets."""

import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

import evaluate
import offline_trainer
import online_trainer
from environments import custom_env, safe_env
from environments.custom_env import open_env
from environments.safe_env import num_tasks, open_envs
from figures.pictures import open_maze
from observing.observation_models import ObservationModel, find_dimensions
from ogbench_utils import make_env, reset_env
from rollouts import Episode, run_episodes

NAN = np.array([np.nan, 0])


class Arm(gymnasium.Env):
    """Two angles that follow the action; episodes of nine steps. `log` has all calls of all instances."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Box(-1, 1, (2,))
    log = []

    def __init__(self):
        self.log.append('make')

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.log.append('reset')
        self.state, goal = self.np_random.uniform(-1, 1, (2, 2))
        self.count = 0
        return self.state.copy(), {'goal': goal}

    def step(self, action):
        self.state = self.state + 0.1 * action
        self.count += 1
        return self.state.copy(), 0.0, False, self.count == 9, {'success': False}

    def close(self):
        self.log.append('close')


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Arm, 'log', [])
    monkeypatch.setattr(custom_env, '_checked', set())


@pytest.fixture
def register(monkeypatch):
    """register(factory) returns its name."""
    module = types.ModuleType('strangers')
    monkeypatch.setitem(sys.modules, 'strangers', module)

    def name_of(factory):
        module.make = factory
        return 'strangers:make'

    return name_of


@pytest.fixture
def run(constant_agent):
    """run(class, jobs, n) -> episodes of a constant action, in order of their jobs."""

    def run(make, count=3, n=1, action=(0.5, 0.25), **options):
        envs = open_envs('', n, lambda dataset: make())
        jobs = [(1, seed) for seed in range(count)]
        return sorted(run_episodes(envs, jobs, constant_agent(action), **options), key=lambda e: e.job)

    return run


def arm(**methods):
    return type('Stranger', (Arm,), methods)


def with_step(change, at=4):
    """Return an Arm whose step number `at` of the second episode returns change(*result)."""

    def step(self, action):
        result = Arm.step(self, action)
        return change(*result) if self.count == at and self.log.count('reset') == 2 else result

    return arm(step=step)


def with_reset(change):
    """Return an Arm whose second reset returns change(*result)."""

    def reset(self, seed=None, options=None):
        result = Arm.reset(self, seed)
        return change(*result) if self.log.count('reset') == 2 else result

    return arm(reset=reset)


# ----------------------------------------------------------------------------------- every fault is a fault
STEP_FAULTS = {
    'no success': (lambda o, r, te, tr, i: (o, r, te, tr, {}), "no info['success']"),
    'success None': (lambda o, r, te, tr, i: (o, r, te, tr, {'success': None}), "info['success'] is None"),
    'success of text': (lambda o, r, te, tr, i: (o, r, te, tr, {'success': 'no'}), "info['success'] is 'no'"),
    'success of one value': (
        lambda o, r, te, tr, i: (o, r, te, tr, {'success': np.ones(1)}), "info['success'] is array([1.])"),
    'success of a share': (lambda o, r, te, tr, i: (o, r, te, tr, {'success': 0.5}), "info['success'] is 0.5"),
    'success NaN': (lambda o, r, te, tr, i: (o, r, te, tr, {'success': np.nan}), "info['success'] is nan"),
    'terminated None': (lambda o, r, te, tr, i: (o, r, None, tr, i), '`terminated` of step is None'),
    'truncated of a list': (lambda o, r, te, tr, i: (o, r, te, [], i), '`truncated` of step is []'),
    'info None': (lambda o, r, te, tr, i: (o, r, te, tr, None), 'info a dict'),
    'step of gym': (lambda o, r, te, tr, i: (o, r, te, i), '(observation, reward, terminated, truncated, info)'),
    'NaN': (lambda o, r, te, tr, i: (NAN, r, te, tr, i), 'not finite: dimension 0 is nan'),
    'beyond float32': (lambda o, r, te, tr, i: (o * 1e300, r, te, tr, i), 'not finite: dimension 0'),
    'one dimension less': (lambda o, r, te, tr, i: (o[:1], r, te, tr, i), 'shape (1,)'),
    'a column': (lambda o, r, te, tr, i: (o[:, None], r, te, tr, i), 'shape (2, 1)'),
    'None': (lambda o, r, te, tr, i: (None, r, te, tr, i), 'shape ()'),
    'objects': (lambda o, r, te, tr, i: (np.array([None, 1]), r, te, tr, i), 'type object'),
    'no text': (lambda *result: (_ for _ in ()).throw(AssertionError()), 'AssertionError'),
    'exit': (lambda *result: sys.exit('licence'), 'licence'),
}


@pytest.mark.parametrize('case', STEP_FAULTS)
def test_a_faulty_step_ends_its_episode_only(run, case, capsys):
    change, words = STEP_FAULTS[case]
    episodes = run(with_step(change))
    assert [episode.length for episode in episodes] == [9, 3, 9]
    assert words in episodes[1].fault and episodes[1].success == 0 and not episodes[0].fault
    assert Arm.log == ['make', 'reset', 'reset', 'close', 'make', 'reset'], 'closed before it is made again'
    line, = capsys.readouterr().err.strip().splitlines()
    assert words in line


RESET_FAULTS = {
    'no goal': lambda o, i: (o, {}),
    'goal NaN': lambda o, i: (o, {'goal': np.full(2, np.nan)}),
    'goal None': lambda o, i: (o, {'goal': None}),
    'goal of another shape': lambda o, i: (o, {'goal': np.zeros(3)}),
    'observation NaN': lambda o, i: (NAN, i),
    'observation only': lambda o, i: o,
    'info None': lambda o, i: (o, None),
}


@pytest.mark.parametrize('case', RESET_FAULTS)
def test_a_faulty_reset_is_retried_with_the_same_seed(run, case):
    episodes = run(with_reset(RESET_FAULTS[case]))
    assert [episode.length for episode in episodes] == [9, 9, 9]
    expected = run(Arm)
    for ours, theirs in zip(episodes, expected, strict=True):
        np.testing.assert_array_equal(ours.observations, theirs.observations)
        np.testing.assert_array_equal(ours.goal, theirs.goal)


def test_a_retry_seeds_the_action_space_of_the_new_environment(run):
    class Draws(Arm):
        """As OGBench's arms, it draws its goal from its action space and from numpy's generator."""

        def __init__(self):
            super().__init__()
            self.action_space = Box(-1, 1, (2,))

        def reset(self, seed=None, options=None):
            observation, _ = super().reset(seed)
            goal = self.action_space.sample() + np.random.random(2)
            if fails and self.log.count('reset') == 2:
                raise OSError('no answer')
            return observation, {'goal': goal}

    fails = True
    goals = [episode.goal for episode in run(Draws)]
    fails = False
    np.testing.assert_array_equal(goals, [episode.goal for episode in run(Draws)])


def test_a_factory_that_fails_after_a_fault_is_tried_again(run):
    def make():
        Arm.log.append('try')
        if Arm.log.count('try') == 2:
            raise OSError('port is busy')
        return with_step(STEP_FAULTS['NaN'][0])()

    assert [episode.length for episode in run(make)] == [9, 3, 9]


def test_five_faults_in_a_row_name_the_cause_and_its_place(run):
    def step(self, action):
        try:
            return {}['joint 3']
        except KeyError as error:
            raise RuntimeError('no\nanswer') from error

    with pytest.raises(OSError) as error:
        run(arm(step=step), 9)
    assert '\n' not in str(error.value)
    parts = ('5 times in a row', 'RuntimeError: no answer (', 'test_env_border.py:', "caused by KeyError: 'joint 3'")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize('reward', [None, {}, [], 'much', np.nan, np.ones(1), np.ones(3), np.float32(1), 1, True])
def test_rewards_are_not_needed(run, reward):
    change = with_step(lambda o, r, te, tr, i: (o, reward, te, tr, i))
    episodes = run(change)
    assert [episode.length for episode in episodes] == [9, 9, 9]
    assert episodes[1].reward == (1.0 if np.size(reward) == 1 and reward in (1, True) else 0.0)


def test_a_robot_that_cannot_be_closed_goes_on(run, capsys):
    def close(self):
        raise OSError('motor is hot')

    episodes = run(type('Hot', (with_step(STEP_FAULTS['NaN'][0]),), {'close': close}))
    assert [episode.length for episode in episodes] == [9, 3, 9]
    assert 'closing the environment fails with OSError: motor is hot' in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- copies
def test_an_environment_may_reuse_its_buffers(run):
    class Reuses(Arm):
        """Hands out its state, its goal and its info, and changes the action."""

        def reset(self, seed=None, options=None):
            observation, info = super().reset(seed)
            self.buffer, self.goal = np.float32(observation), np.float32(info['goal'])
            self.info = {'goal': self.goal}
            return self.buffer, self.info

        def step(self, action):
            self.buffer[:] = super().step(action)[0]
            self.goal += 1
            action[:] = 7
            return self.buffer, 0.0, False, self.count == 9, {'success': False}

    for ours, expected in zip(run(Reuses), run(Arm), strict=True):
        np.testing.assert_array_equal(ours.observations, expected.observations)
        np.testing.assert_array_equal(ours.goal, expected.goal)
        np.testing.assert_array_equal(ours.actions, expected.actions)


def test_the_border_keeps_float64():
    env, = open_envs('', 1, lambda dataset: Arm())
    observation, info = env.reset(seed=0)
    assert observation.dtype == info['goal'].dtype == np.float64
    assert env.step(np.ones(2, np.float32))[0].dtype == np.float64


def test_observation_models_see_checked_states(constant_agent):
    """A fault in a dimension that is not observed is one, too."""
    class Fails(Arm):
        def step(self, action):
            observation, *rest = super().step(action)
            return (observation if self.count < 4 else NAN), *rest

    model = ObservationModel('positions', dimensions=(1,))
    envs = open_envs('', 1, lambda dataset: Fails(), model)
    episode, = run_episodes(envs, [(1, 0)], constant_agent([0, 0]))
    assert episode.length == 3 and 'dimension 0 is nan' in episode.fault and episode.observations.shape == (4, 1)


# ----------------------------------------------------------------------------------- instances and closing
class OneRobot(Arm):
    """There is one; it must be closed before it is opened again."""

    is_open = False

    def __init__(self):
        super().__init__()
        if OneRobot.is_open:
            raise OSError('serial port is busy')
        OneRobot.is_open = True

    def close(self):
        super().close()
        OneRobot.is_open = False


@pytest.fixture
def one_robot(register, monkeypatch):
    monkeypatch.setattr(OneRobot, 'is_open', False)
    return register(OneRobot)


def test_a_second_robot_that_fails_names_num_envs(one_robot):
    with pytest.raises(ValueError, match='serial port is busy.*only 1 of --num_envs 8 .* give --num_envs 1'):
        open_envs(one_robot, 8, make_env)
    assert not OneRobot.is_open, 'the first one is closed'
    with open_envs(one_robot, 1, make_env):
        assert OneRobot.is_open
    assert not OneRobot.is_open


def test_a_factory_that_returns_one_object_names_num_envs(register):
    robot = Arm()
    name = register(lambda: robot)
    with pytest.raises(ValueError, match=f'--env {name}: .* same environment twice; .* give --num_envs 1'):
        open_envs(name, 2, make_env)
    with open_envs(name, 1, make_env):
        pass


@pytest.mark.parametrize('problem', [
    {'reset': lambda self, seed=None, options=None: NAN},
    {'num_tasks': 0},
    {'action_space': Box(0, 9, (2,), np.int64)},
])
def test_a_refused_robot_is_closed(register, problem):
    with pytest.raises(ValueError, match='--env strangers:make: '):
        open_env(register(arm(**problem)))
    assert Arm.log[-1] == 'close'


def test_open_maze_closes_the_robot(one_robot):
    assert open_maze(one_robot) is None and not OneRobot.is_open


def test_a_maze_of_another_kind_is_no_maze_of_ogbench(register):
    assert open_maze(register(arm(maze_map=[[0, 1]]))) is None


def test_closing_opens_again_at_the_next_reset(one_robot, constant_agent):
    with open_envs(one_robot, 1, make_env) as envs:
        envs.close()
        assert not OneRobot.is_open and envs[0].action_space.shape == (2,) and num_tasks(envs[0]) == 1
        episode, = run_episodes(envs, [(1, 5)], constant_agent([0, 0]))
    assert episode.length == 9
    start = reset_env(Arm(), 1, 5)[0]
    np.testing.assert_array_equal(episode.observations[0], start)


ENDLESS = """
import sys, types, runpy, gymnasium, numpy as np
from gymnasium.spaces import Box

class Endless(gymnasium.Env):
    observation_space = action_space = Box(-1, 1, (2,))
    count = 0
    def reset(self, seed=None, options=None):
        return np.zeros(2), {'goal': np.zeros(2)}
    def step(self, action):
        self.count += 1
        if self.count == 200: print('runs', flush=True)
        return np.zeros(2), 0.0, False, False, {'success': False}
    def close(self):
        print('closed', flush=True)

class Agent:
    offline = types.SimpleNamespace(observation_dim=2)
    action_dim = 2
    from_state_dict = classmethod(lambda cls, *_: cls())
    initial_state = lambda self, n: None
    reset_state = lambda self, state, rows: None
    read_goal = lambda self, goal: goal
    act = lambda self, observations, goals, state: (np.zeros((len(observations), 2), np.float32), None)

if __name__ == '__main__':
    import support.threads, online_agent, support.files, observing.observation_models as models
    support.files.load_checkpoint = lambda path, kind: {'dataset': 'endless:Endless', 'agent': {'config': {}}}
    models.observation_model_of = lambda checkpoint: models.FULL_STATE
    online_agent.OnlineAgent = Agent
    path, sys.argv = sys.argv[1], ['evaluate.py', '--checkpoint', 'x', '--num_envs', '1']
    runpy.run_path(path, run_name='__main__')
"""


def test_sigterm_ends_an_endless_evaluation_and_closes_the_robot(tmp_path):
    (tmp_path / 'endless.py').write_text(ENDLESS)
    process = subprocess.Popen([sys.executable, 'endless.py', evaluate.__file__], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {'PYTHONPATH': str(Path(evaluate.__file__).parent)})
    assert 'runs\n' in iter(process.stdout.readline, '')
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert 'closed' in output and process.returncode == 130


def test_training_with_one_robot_opens_one_at_a_time(one_robot, tmp_path, monkeypatch, capsys):
    """Offline, online with an evaluation and videos, and evaluate.py, with the flags of own_robot.md."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OneRobot, 'observed', {'positions': [1, 0]}, raising=False)
    for target in ('offline_trainer.plot_curves', 'online_trainer.plot_curves', 'online_trainer.draw_evaluation',
                   'evaluate.draw_evaluation', 'figures.pictures.draw_trajectories'):
        monkeypatch.setattr(target, lambda *_: None)  # drawing takes seconds
    rng = np.random.default_rng(0)
    np.savez('arm.npz', observations=rng.standard_normal((400, 2)).cumsum(0), terminals=np.arange(400) % 40 == 39)
    offline = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 --batch_size 2 '
                          '--transition_steps 5 --num_updates 1 --dataset_path arm.npz --observe positions')
    online = ['--env', one_robot, '--offline_checkpoint', 'off/last.pth', *shlex.split(
        '--idm_hidden_dim 32 --batch_size 2 --num_envs 1 --random_steps 60 --initial_updates 1 --max_steps 60 '
        '--final_eval_episodes 1 --video')]
    evaluation = shlex.split('--checkpoint on/last.pth --compare on/last.pth --episodes_per_task 1 --num_envs 1 '
                             '--video')
    offline_trainer.main(['--env', one_robot, '--save_dir', 'off', *offline])
    assert not OneRobot.is_open

    recorded = []
    monkeypatch.setattr(online_trainer, 'record', lambda *_: recorded.append(OneRobot.is_open))
    online_trainer.main([*online, '--save_dir', 'on'])
    assert not OneRobot.is_open and recorded == [False]

    monkeypatch.setattr(evaluate, 'record', lambda *_: recorded.append(OneRobot.is_open) or [])
    evaluate.main(evaluation)
    assert not OneRobot.is_open and recorded == [False, False]

    # another robot
    with monkeypatch.context() as patch:
        patch.setattr(OneRobot, 'action_space', Box(-1, 1, (3,)))
        patch.setattr(OneRobot, 'step', lambda self, action: Arm.step(self, action[:2]))
        with pytest.raises(ValueError, match='last.pth is for actions of 2 dimensions, the environment has 3'):
            evaluate.main(evaluation)
    assert not OneRobot.is_open

    # a run that fails closes it, too
    def fail(self):
        raise OSError('disk is full')

    monkeypatch.setattr(online_trainer.OnlineTraining, 'update', fail)
    with pytest.raises(OSError, match='disk is full'):
        online_trainer.main([*online, '--save_dir', 'other'])
    assert not OneRobot.is_open and Arm.log.count('make') == Arm.log.count('close')


# -------------------------------------------------------------------------------------- attributes of wrappers
class Three(gymnasium.Wrapper):
    num_tasks = 3
    observed = {'positions': [1]}


def test_attributes_of_wrappers_count(register):
    env, = open_envs(register(lambda: gymnasium.wrappers.TimeLimit(Three(Arm()), 9)), 1, make_env)
    assert num_tasks(env) == 3 and find_dimensions(env, 'positions') == [1]
    assert num_tasks(gymnasium.wrappers.TimeLimit(Three(Arm()), 9)) == 3


@pytest.mark.parametrize('count', [0, -1, None, '3', 2.0, True, lambda self: 3])
def test_num_tasks_must_be_a_count(register, count):
    with pytest.raises(ValueError, match='--env strangers:make: its `num_tasks` is .*; it must be an int') as error:
        open_env(register(arm(num_tasks=count)))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('observed', [
    [0], {'positions': 0}, {'positions': []}, {'positions': [2]}, {'positions': [-1]}, {'positions': [0.5]},
    {'positions': [1, 1]}, {'positions': None}])
def test_observed_must_be_dimensions(observed):
    with pytest.raises(ValueError, match='--observe positions: `observed` of the environment'):
        find_dimensions(arm(observed=observed)(), 'positions')


# ------------------------------------------------------------------------------------------------ time limit
@pytest.fixture
def short_limit(monkeypatch):
    monkeypatch.setattr(safe_env, 'LONGEST_EPISODE', 30)
    safe_env.warn_once.cache_clear()


def endless():
    def step(self, action):
        observation, reward, _, _, info = Arm.step(self, action)
        return observation, reward, False, False, info

    return arm(step=step)


def test_an_episode_without_end_is_cut_with_one_warning(run, short_limit, capsys):
    episodes = run(endless(), 4, n=2)
    assert [episode.length for episode in episodes] == [30] * 4 and not any(e.fault for e in episodes)
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('warning: an episode did not end within 30 steps') and 'TimeLimit(env, steps)' in line


def test_a_time_limit_allows_longer_episodes(run, short_limit, capsys):
    episode, = run(lambda: gymnasium.wrappers.TimeLimit(endless()(), 45), 1)
    assert episode.length == 45 and not capsys.readouterr().err


# --------------------------------------------------------------------------------------------- repeated resets
class OwnGenerator(Arm):
    rng = np.random.default_rng(0)

    def reset(self, seed=None, options=None):
        _, info = super().reset(seed)
        return self.rng.uniform(-1, 1, 2), info


def test_check_env_warns_of_an_ignored_seed_and_keeps_numpys_generator(register, capsys):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    safe_env.warn_once.cache_clear()
    open_env(register(OwnGenerator))
    assert 'two resets with seed=0 differ' in capsys.readouterr().err
    assert np.random.random() == expected
    custom_env._checked.clear()
    open_env(register(Arm))
    assert not capsys.readouterr().err


def episode_of(start, goal=0.0):
    return Episode(0, 1, 0, np.array([goal]), np.array([[start]]), np.zeros((0, 1)), success=1.0)


def test_compare_says_whether_episodes_are_the_same(capsys):
    same = [episode_of(1), episode_of(2)]
    evaluate.print_comparison(evaluate.compare('other', same, same), 2)
    assert 'minus other, on the same episodes' in capsys.readouterr().out
    for other in ([episode_of(1), episode_of(3)], [episode_of(1), episode_of(2, goal=1.0)]):
        results = evaluate.compare('other', same, other)
        evaluate.print_comparison(results, 2)
        output = capsys.readouterr().out
        assert 'NOT on the same episodes: start or goal differs in 1 of 2' in output
        assert results['different_episodes'] == 1 and 'minus other, on the same' not in output

    # starts that are observed in two ways cannot be compared
    results = evaluate.compare('other', same, [episode_of(1), episode_of(3)], same_observation=False)
    evaluate.print_comparison(results, 2)
    assert 'on episodes of the same seeds' in capsys.readouterr().out and 'different_episodes' not in results


# ------------------------------------------------------------------------------------------------ GoalDict
def box(*shape):
    return Box(-np.inf, np.inf, shape)


class Cart(gymnasium.Env):
    """Starts at rest at the origin, as gymnasium-robotics' observations; `changes` replaces parts."""

    action_space = Box(-1.0, 1.0, (2,))
    parts = {'observation': box(4), 'achieved_goal': box(2), 'desired_goal': box(2)}
    changes = {}

    def __init__(self):
        self.observation_space = Dict(self.parts)

    def observe(self):
        observation = {'observation': np.r_[self.x, self.v], 'achieved_goal': self.x, 'desired_goal': self.goal}
        return {key: value for key, value in (observation | self.changes).items() if value is not None}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v = np.zeros((2, 2))
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action):
        self.v = 0.9 * self.v + 0.01 * action
        self.x += self.v
        return self.observe(), 0.0, False, False, {'is_success': False}


def test_goal_dict_keeps_velocities_of_a_robot_that_starts_at_rest(register, capsys, constant_agent):
    name = register(Cart)
    envs = open_envs(name, 2, make_env)
    assert envs[0].observation_space.shape == (4,)
    line, = capsys.readouterr().out.splitlines()
    assert 'goal (2 dimensions), then dimensions 2-3 of `observation`; left out' in line and line.endswith(': 0-1')
    episode, = run_episodes(envs, [(1, 0)], constant_agent([1.0, 0.0]), max_steps=5)
    assert np.abs(np.diff(episode.observations[:, 0]) - episode.observations[1:, 2]).max() < 1e-6
    np.testing.assert_array_equal(episode.goal[2:], [np.nan, np.nan])  # they do not matter


BAD_DICTS = {
    'no achieved goal': ({'parts': {key: Cart.parts[key] for key in ('observation', 'desired_goal')}},
                         ['no `achieved_goal`']),
    'no observation': ({'parts': {key: Cart.parts[key] for key in ('achieved_goal', 'desired_goal')}},
                       ['no `observation`']),
    'nested goals': ({'parts': Cart.parts | {'desired_goal': Dict(kettle=box(3))}}, ['`desired_goal` is Dict']),
    '0-d goals': ({'parts': Cart.parts | {'achieved_goal': box(), 'desired_goal': box()}},
                  ['`achieved_goal` is Box', 'no vector']),
    'goals of two sizes': ({'parts': Cart.parts | {'desired_goal': box(3)}}, ['same dimensions']),
    'a picture': ({'parts': Cart.parts | {'observation': box(8, 8, 3)}}, ['`observation` is Box (8, 8, 3)']),
    'a missing part': ({'changes': {'achieved_goal': None}}, ['lacks `achieved_goal`']),
    'a part of another shape': ({'changes': {'observation': np.zeros(3)}}, ['`observation`', '(3,)', '(4,)']),
    'reset without seed': ({'reset': lambda self: (self.observe(), {})}, ['reset(seed=0', 'TypeError']),
    'no is_success': ({'step': lambda self, action: (self.observe(), 0.0, False, False, {})}, ["info['success']"]),
}


@pytest.mark.parametrize('case', BAD_DICTS)
def test_goal_dict_refuses_in_one_line(register, case):
    attributes, words = BAD_DICTS[case]
    with pytest.raises(ValueError) as error:
        open_env(register(type('Bad', (Cart,), attributes)))
    text = str(error.value)
    assert text.startswith('--env strangers:make: ') and '\n' not in text
    for word in words:
        assert word in text, text


# ------------------------------------------------------------------------------------------- refused factories
class GymSpace:
    """A space of the old gym."""

    shape = (2,)


GymSpace.__module__ = 'gym.spaces.box'
REFUSED = {
    'old gym': (lambda: arm(observation_space=GymSpace())(), ['gym.spaces.box.GymSpace', 'no space of gymnasium']),
    'old gym, actions': (lambda: arm(action_space=GymSpace())(), ['action_space', 'no space of gymnasium']),
    'vector environment': (
        lambda: gymnasium.make_vec('Pendulum-v1', num_envs=2, vectorization_mode='sync'), ['vector environment']),
    'whole actions': (lambda: arm(action_space=Box(0, 5, (2,), np.int32))(), ['type int32', 'Box of floats']),
    'wide bounds': (lambda: arm(action_space=Box(-3e38, 3e38, (2,)))(), ['bounds of its actions']),
    'no state': (lambda: arm(observation_space=Box(-1, 1, (0,)))(), ['not vectors']),
    'pictures': (lambda: arm(observation_space=Box(0, 255, (8, 8, 3), np.uint8))(), ['encode each picture']),
    'dictionaries': (lambda: arm(observation_space=Dict(x=Box(-1, 1, (3,))))(), ["info['goal'] flattened alike"]),
    'success later': (
        lambda: arm(step=lambda self, action: (*Arm.step(self, action)[:4], {'success': True} if self.count < 3 else
                                               {}))(), ["no info['success']", 'every step']),
    'goal once': (lambda: with_reset(lambda o, i: (o, {}))(), ["no info['goal']"]),
    'exit': (lambda: sys.exit(3), ['the factory fails with SystemExit: 3']),
    'no text': (lambda: [][1:].pop(), ['the factory fails with IndexError', 'test_env_border.py:']),
    'an argument': (lambda port: Arm(), ['the factory fails with TypeError', 'port']),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refusals_are_one_line(register, assert_refused, case):
    make, words = REFUSED[case]
    assert_refused(register(make), words)


def test_a_factory_error_names_the_last_cause(register):
    def make():
        try:
            Path('/no/such/urdf').read_text()
        except OSError as error:
            raise RuntimeError from error

    with pytest.raises(ValueError, match=r'fails with RuntimeError \(.*test_env_border.py:\d+\), caused by '
                                         r"FileNotFoundError: .*'/no/such/urdf' \(.*:\d+\)"):
        open_env(register(make))


# ------------------------------------------------------------------------------------------------------ act
@pytest.mark.parametrize('name', ['observations', 'goals'])
def test_act_refuses_bad_inputs_by_name(agent, states, name):
    inputs = {'observations': states(2), 'goals': states(2, seed=1)}
    for value, words in ((np.nan, rf'`{name}\[1, 3\]` is nan'), (np.inf, rf'`{name}\[1, 3\]` is inf')):
        bad = inputs[name].copy()
        bad[1, 3] = value
        with pytest.raises(ValueError, match=words):
            agent.act(**(inputs | {name: bad}), state=agent.initial_state(2))
    for bad in (inputs[name][:, :4], inputs[name][0]):
        with pytest.raises(ValueError, match=rf'act: `{name}` have the shape .* \(B, 5\)'):
            agent.act(**(inputs | {name: bad}), state=agent.initial_state(2))


def test_the_border_is_cheap():
    """A step of an ant takes some 500 microseconds."""
    env, = open_envs('', 1, lambda dataset: Arm())
    env.reset(seed=0)
    action = np.zeros(2, np.float32)

    def seconds(step):
        env.env.count = 10
        begin = time.perf_counter()
        for _ in range(200):
            step(action)
        return time.perf_counter() - begin

    pairs = [(seconds(env.step), seconds(env.env.step)) for _ in range(20)]
    added = np.median([ours - theirs for ours, theirs in pairs]) / 200
    assert added < 2e-4, f'{1e6 * added:.0f} microseconds'
