"""Custom environments: the example of docs/own_robot.md from end to end, and errors of an environment."""

import json
import runpy
import shlex
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

import evaluate
import offline_trainer
import online_trainer
from environments import custom_env
from environments.custom_env import open_env
from environments.safe_env import num_tasks, open_envs
from figures import videos
from observing.observation_models import FULL_STATE
from ogbench_utils import make_env, reset_env
from rollouts import Episode, run_episodes
from support.files import load_checkpoint, save_checkpoint
from support.flags import run_main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = 'docs.own_robot:make_env'
TINY = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 '
                   '--transition_steps 5 --batch_size 4 --num_updates 2 --max_trajectories 12')
TINY_ONLINE = shlex.split('--idm_hidden_dim 32 --batch_size 2 --num_envs 2 --random_steps 60 '
                          '--initial_updates 2 --max_steps 100 --eval_interval 80 --eval_episodes 1 '
                          '--final_eval_episodes 1')


class PointEnv(gymnasium.Env):
    """A point with controlled velocity in the plane; the goal is a position at rest."""

    observation_space = Box(-np.inf, np.inf, (4,))
    action_space = Box(-np.array([1, 2], np.float32), np.array([3, 2], np.float32))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.options = options
        self.state = np.zeros(4)
        self.count = 0
        return self.state.copy(), {'goal': np.array([1.0, 0, 0, 0])}

    def step(self, action):
        self.state[2:] = action
        self.state[:2] += 0.1 * self.state[2:]
        self.count += 1
        success = np.linalg.norm(self.state[:2] - [1, 0]) < 0.1
        return self.state.copy(), 0.0, False, self.count == 25, {'success': success}


@pytest.fixture
def robot(tmp_path, monkeypatch):
    """robot(source) writes the module `robot` to the working directory and returns the name of its `make`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(custom_env, '_checked', set())

    def write(source):
        (tmp_path / 'robot.py').write_text(source)
        monkeypatch.delitem(sys.modules, 'robot', raising=False)
        return 'robot:make'

    yield write
    sys.modules.pop('robot', None)


@pytest.fixture
def register(monkeypatch):
    """register(env) returns a name whose factory returns that environment."""
    monkeypatch.setattr(custom_env, '_checked', set())
    module = type(sys)('registered')
    monkeypatch.setitem(sys.modules, 'registered', module)

    def name_of(env):
        module.make = lambda: env
        return 'registered:make'

    return name_of


# ---------------------------------------------------------------------------------------------- the example
@pytest.fixture(scope='module')
def trained(tmp_path_factory, run_script, fit_quickly, save_plainly):
    """Run the commands of the page with a tiny budget; return the folder of the online run and all output."""
    cwd = tmp_path_factory.mktemp('arm')

    patch = pytest.MonkeyPatch()
    patch.setattr('labeling.labeler.Labeler.fit', fit_quickly)
    patch.setattr('matplotlib.figure.Figure.savefig', save_plainly)

    def command(script, *flags):
        return run_script(script, *flags, cwd=cwd)[0]

    command('docs/own_robot.py')
    output = command('offline_trainer.py', '--env', EXAMPLE, '--dataset_path', 'arm.npz', *TINY)
    next_command = shlex.split(output.splitlines()[-1].removeprefix('next: '))
    assert next_command[:4] == ['python', 'online_trainer.py', '--env', EXAMPLE]
    output += command('online_trainer.py', *next_command[2:], *TINY_ONLINE)
    online = cwd / 'online_checkpoints' / 'docs.own_robot.make_env' / 'seed0'
    output += command('evaluate.py', '--checkpoint', str(online / 'last.pth'), '--episodes_per_task', '2')
    output += command('scripts/analysis/draw_maze.py', '--checkpoint', str(online / 'last.pth'),
                      '--episodes_per_task', '2', '--output', str(cwd / 'drawn'))
    patch.undo()
    return online, output


def test_example_is_short():
    lines = (ROOT / 'docs' / 'own_robot.py').read_text(encoding='utf-8').splitlines()
    assert len(lines) < 60


def test_example_trains_and_is_evaluated(trained):
    online, output = trained
    offline = online.parents[2] / 'offline_checkpoints' / online.parent.name / 'seed0'
    drawn = online.parents[2] / 'drawn'
    names = {folder: {path.name for path in folder.iterdir()} for folder in (offline, online, drawn)}
    assert names[offline] >= {'last.pth', 'trajectory_values.png', 'trajectory_latents.png'}
    assert names[online] >= {'last.pth', 'episode_values.png', 'evaluation_2_episodes_seed0_values.png'}
    assert names[drawn] == {'trajectory_values.png', 'trajectory_latents.png', 'episode_values.png'}
    assert not [*online.glob('maze*')] + [*offline.glob('maze*')]

    metrics = json.loads((online / 'evaluation_2_episodes_seed0.json').read_text())
    assert metrics['dataset'] == EXAMPLE and metrics['plan'] is True
    assert metrics.keys() >= {'evaluation/task1_success', 'evaluation/overall_success'}
    assert 'evaluation/task2_success' not in metrics, 'one task'
    saved = load_checkpoint(online / 'last.pth', 'online')
    assert saved['dataset'] == EXAMPLE and saved['replay']['actions'].shape[1] == 2
    assert saved['replay']['actions'].abs().max() <= 1
    assert 'maze' not in output


def test_run_in_a_custom_environment_resumes(trained, quick_training, tmp_path, monkeypatch, capsys):
    online, _ = trained
    monkeypatch.chdir(online.parents[2])
    source = load_checkpoint(online / 'last.pth', 'online')['source']
    run = str(tmp_path / 'run')
    flags = ['--env', EXAMPLE, '--offline_checkpoint', source, '--save_dir', run, *TINY_ONLINE]
    online_trainer.main(flags)
    online_trainer.main([*flags, '--max_steps', '140', '--resume'])
    capsys.readouterr()
    with pytest.raises(ValueError, match=f'was trained on {EXAMPLE}, --dataset is antmaze'):
        online_trainer.main(['--offline_checkpoint', source, *TINY_ONLINE])
    with pytest.raises(FileNotFoundError, match='offline_trainer.py --env other:make first'):
        online_trainer.main(['--env', 'other:make'])


def test_states_of_another_shape_are_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez('five.npz', observations=np.random.default_rng(0).standard_normal((800, 5)),
             terminals=np.arange(800) % 100 == 99)
    with pytest.raises(ValueError, match=f'five.npz: its states have 5 dimensions, .* --env {EXAMPLE} 2; '):
        offline_trainer.main(['--env', EXAMPLE, '--dataset_path', 'five.npz', *TINY])


def test_example_records_trajectories_of_its_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / 'docs' / 'own_robot.py'), run_name='__main__')
    with np.load('arm.npz', allow_pickle=False) as file:
        assert sorted(file.files) == ['observations', 'terminals']
        angles = file['observations'].reshape(200, 201, 2)
    assert np.abs(angles).max() <= 2.5 + 1e-5
    assert np.abs(np.diff(angles, axis=1)).max() <= 0.05 + 1e-5, 'no step exceeds the limits of the servos'
    assert np.ptp(angles, axis=1).max(-1).min() > 1, 'every recording moves the arm'
    env = names['make_env']()
    observation, info = env.reset(seed=3)
    again, same = env.reset(seed=3)
    assert np.array_equal(observation, again) and np.array_equal(info['goal'], same['goal'])


# ------------------------------------------------------------------------------------ accepted environments
def test_make_env_imports_from_the_working_directory(robot):
    source = Path(__file__).read_text(encoding='utf-8')
    body = source[source.index('class PointEnv'):source.index('@pytest.fixture\ndef robot')]
    imports = 'import gymnasium\nimport numpy as np\nfrom gymnasium.spaces import Box\n'
    name = robot(f'{imports}{body}\nmake = PointEnv\n')
    env = make_env(name)
    observation, goal = reset_env(env, 1, 5)
    assert observation.dtype == goal.dtype == np.float32 and goal.tolist() == [1, 0, 0, 0]


def test_episodes_use_action_bounds_and_tasks_of_the_environment(register, constant_agent):
    class Tasks(PointEnv):
        num_tasks = 3

    env = Tasks()
    envs = open_envs(register(env), 1, make_env)
    assert num_tasks(envs[0]) == 3 and num_tasks(PointEnv()) == 1

    for episode in run_episodes(envs, [(2, 0), (3, 1)], constant_agent([1.0, 0.0])):
        assert env.options == {'task_id': episode.task}
        assert episode.observations.shape == (26, 4) and episode.length == 25 and episode.success == 0


def test_goal_dict_adapts_gymnasium_robotics(register):
    """The desired goal replaces the achieved one in the state."""
    class Fetch(gymnasium.Env):
        observation_space = Dict({key: Box(-9, 9, (n,)) for key, n in
                                  (('observation', 4), ('achieved_goal', 2), ('desired_goal', 2))})
        action_space = Box(-1, 1, (2,))

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.position = self.np_random.uniform(-1, 1, 2)
            return self.observe(), {}

        def step(self, action):
            self.position += action
            return self.observe(), 0.0, False, False, {'is_success': np.float32(1.0)}

        def observe(self):
            return {'observation': np.array([7, *self.position, 8.0]), 'achieved_goal': self.position.copy(),
                    'desired_goal': np.array([5.0, 6.0])}

    env = open_env(register(Fetch()))
    assert env.observation_space.shape == (4,)
    observation, goal = reset_env(env, 1, 4)
    np.testing.assert_array_equal(goal, [5, 6, np.nan, np.nan])
    assert observation[2:].tolist() == [7, 8]
    moved, *_, info = env.step(np.array([0.5, 0], np.float32))
    np.testing.assert_allclose(moved, observation + [0.5, 0, 0, 0], atol=1e-6)
    assert info['success'] is True


def test_video_of_a_custom_environment_needs_no_gl(register, tmp_path, monkeypatch):
    class Drawn(gymnasium.Wrapper):
        def render(self):
            return np.full((96, 96, 3), 200, np.uint8)

    env = Drawn(PointEnv())
    name = register(env)
    observation, goal = reset_env(env, 1, 5)
    episode = Episode(0, 1, 5, goal, [observation], [])
    for _ in range(4):
        episode.actions.append(np.ones(2, np.float32))
        episode.observations.append(env.step(episode.actions[-1])[0].astype(np.float32))
    monkeypatch.setattr(videos.shutil, 'which', lambda program: None)
    videos.write_job(tmp_path / 'job.npz', name, episode.finish(2), tmp_path / 'task1', FULL_STATE, 96, 2)
    assert videos.render(tmp_path / 'job.npz').stat().st_size > 500
    Drawn.render = lambda self: None
    with pytest.raises(OSError, match='returned no array'):
        videos.render(tmp_path / 'job.npz')
    del Drawn.render
    with pytest.raises(OSError, match=r'has no render\(\)'):
        videos.render(tmp_path / 'job.npz')


# ------------------------------------------------------------------------------------- refused environments
def changed(**attributes):
    return type('Bad', (PointEnv,), attributes)()


def reset_to(observation, **info):
    return lambda self, seed=None, options=None: (observation, info)


def step_to(observation, **info):
    return lambda self, action: (observation, 0.0, False, False, info)


STATE = np.zeros(4)
BAD = {
    'dictionary observations': (
        changed(observation_space=Dict({'x': Box(-1, 1, (3,))})),
        ['observations are Dict', 'FlattenObservation']),
    'image observations': (
        changed(observation_space=Box(0, 255, (8, 8, 3), np.uint8)), ['Box (8, 8, 3)', 'vectors']),
    'discrete actions': (changed(action_space=Discrete(3)), ['actions are Discrete', 'Box (A,)']),
    'infinite action bounds': (
        changed(action_space=Box(-np.inf, np.inf, (2,))), ['bounds of its actions', 'inf', 'finite']),
    'empty action range': (
        changed(action_space=Box(0.0, np.array([1, 0], np.float32))),
        ['bounds of its actions', 'low below high']),
    'no goal': (changed(reset=reset_to(STATE)), ["no info['goal']", '(4,)']),
    'goal of another shape': (
        changed(reset=reset_to(STATE, goal=np.zeros(2))), ["info['goal']", 'shape (2,)', '(4,)']),
    'goal of strings': (
        changed(reset=reset_to(STATE, goal=np.array(['a'] * 4))), ["info['goal']", 'type <U1', 'numbers']),
    'goal with NaN': (
        changed(reset=reset_to(STATE, goal=np.full(4, np.nan))), ["info['goal']", 'NaN in all dimensions']),
    'goal with infinity': (
        changed(reset=reset_to(STATE, goal=np.array([np.nan, np.inf, 0, 0]))), ["info['goal']", 'not finite']),
    'goal_dims that are a number': (changed(goal_dims=2), ['`goal_dims` are 2', '0 to 3']),
    'goal_dims of names': (changed(goal_dims=('x', 'y')), ['`goal_dims`', '0 to 3']),
    'goal_dims out of range': (changed(goal_dims=[0, 4]), ['`goal_dims` are [0, 4]', '0 to 3']),
    'goal_dims twice': (changed(goal_dims=[1, 1]), ['`goal_dims` are [1, 1]', 'distinct']),
    'reset of gym': (changed(reset=lambda self: STATE), ['reset(seed=0', 'TypeError', '(observation, info)']),
    'observation of another shape': (
        changed(reset=reset_to(np.zeros(5), goal=STATE)), ['observation of reset', 'shape (5,)', '(4,)']),
    'observation of objects': (
        changed(step=step_to(np.array([None] * 4), success=True)),
        ['observation of step', 'type object', 'numbers']),
    'no success': (changed(step=step_to(STATE)), ["no info['success']", 'every step']),
    'success of two values': (
        changed(step=step_to(STATE, success=np.ones(2))), ["info['success']", 'must be a bool']),
    'step of gym': (
        changed(step=lambda self, action: (STATE, 0.0, False, {})), ['step returns', 'terminated, truncated']),
}


@pytest.mark.parametrize('case', BAD)
def test_check_env_refuses_bad_environments_in_one_line(register, assert_refused, case):
    env, words = BAD[case]
    assert_refused(register(env), words)


@pytest.mark.parametrize('source, words', [
    ('make = 3', ['no function `make`', 'robot.py']),
    ('def make(): return 3', ['returns 3', 'gymnasium environment']),
    ('def make(): raise OSError("no serial port")', ['the factory fails', 'no serial port']),
    ('import nonsense_that_is_not_there', ['cannot import robot', 'nonsense_that_is_not_there']),
    ('def make(:', ['cannot import robot', 'SyntaxError']),
])
def test_bad_factories_are_refused_in_one_line(robot, capsys, source, words):
    name = robot(source)
    np.savez('states.npz', observations=np.random.default_rng(0).standard_normal((800, 4)),
             terminals=np.arange(800) % 100 == 99)
    with pytest.raises(SystemExit) as end:
        run_main(lambda: offline_trainer.main(['--env', name, '--dataset_path', 'states.npz', *TINY]))
    stderr = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and stderr[-1].startswith(f'error: --env {name}: ')
    for word in words:
        assert word in stderr[-1]


def test_evaluate_refuses_a_missing_module(trained, robot, no_pictures):
    """The flag --dataset gives the new name of the environment."""
    checkpoint = load_checkpoint(trained[0] / 'last.pth')
    save_checkpoint('moved.pth', checkpoint | {'dataset': 'gone:make'})
    with pytest.raises(ValueError, match='--env gone:make: cannot import gone'):
        evaluate.main(['--checkpoint', 'moved.pth'])
    evaluate.main(['--checkpoint', 'moved.pth', '--dataset', EXAMPLE, '--episodes_per_task', '1'])
