"""Tiny networks and data for the tests; factories are fixtures, so that no test file imports another.

A cheap test calls functions or main(argv) in this process, and a training in it takes the fixture
`quick_training`: pictures, the labeler's kernel and long episodes are 80 % of a tiny run. `plain_figures`
draws pictures whose look does not matter; `run_script` runs a script in a process without the 6 s of imports.

Tests run side by side (`pytest -n 2`): each uses its own folder (tmp_path) and no fixed ports. Files whose
tests share an expensive fixture are listed in `ONE_PROCESS`.
"""

import dataclasses
import gc
import io
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from child_process import end_with

from environments.custom_env import open_env
from model import Encoder
from observing.observation_models import FULL_STATE
from offline_agent import OfflineAgent, OfflineConfig
from ogbench_utils import make_env
from online_agent import OnlineAgent, OnlineConfig
from support.files import save_checkpoint
from tasks import build_map
from trajectories import ReplayBuffer, TrajectoryDataset

os.environ['OMP_NUM_THREADS'] = '1'  # for programs that tests start: the order of sums depends on it
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
DIM, ACTION_DIM = 5, 3
LENGTHS = (40, 2, 23, 9, 31)  # a long trajectory, the shortest possible one, one shorter than a window
TINY = dict(sequence_windows=16, context_length=12, d_model=32, n_layers=2, d_state=8, headdim=16, hidden_dim=32,
            discount=0.9, transition_steps=4, positions_per_window=6)


# files that run in one process each: their tests share the runs of a fixture
ONE_PROCESS = ('test_cli', 'test_custom_env', 'test_resume', 'test_side_effects', 'test_simulator_labels')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute single tests, and the files of `ONE_PROCESS` as a whole, the largest first."""
    from xdist.scheduler import LoadScopeScheduling

    class TestsAndFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split('::')[0]
            return file if Path(file).stem in ONE_PROCESS else nodeid

    return TestsAndFiles(config, log)


class Stub(torch.nn.Module):
    """Stands in for a network: calls a plain function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **options):
        return self.function(*args, **options)


class ShortEnv(gymnasium.Wrapper):
    """Truncates after 30 steps."""

    def reset(self, **options):
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action):
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated or self.steps >= 30, info


@pytest.fixture(scope='session')
def make_short_env():
    """make_short_env(dataset) -> OGBench's environment with episodes of 30 steps."""
    return lambda dataset: ShortEnv(make_env(dataset))


# ------------------------------------------------------------------------------------------- quick trainings
@pytest.fixture(autouse=True, scope='module')
def small_heap():
    """Exclude all present objects from garbage collection, which each figure starts and which takes 0.5 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def short_episodes(monkeypatch, make_short_env):
    """End every episode of online_trainer.py and evaluate.py after 30 steps."""
    import evaluate
    import online_trainer
    for script in (online_trainer, evaluate):
        monkeypatch.setattr(script, 'make_env', make_short_env)


@pytest.fixture
def no_pictures(monkeypatch):
    """Draw nothing in trainings and evaluations."""
    import evaluate
    import offline_trainer
    import online_trainer
    from figures import pictures
    for script in (offline_trainer, online_trainer):
        monkeypatch.setattr(script, 'plot_curves', lambda *_: None)
    for name in ('draw_agent', 'draw_trajectories'):
        monkeypatch.setattr(pictures, name, lambda *_: None)
    for script in (online_trainer, evaluate):
        monkeypatch.setattr(script, 'draw_evaluation', lambda *_: None)


@pytest.fixture(scope='session')
def save_plainly():
    """Return a replacement of Figure.savefig that draws a small figure without a layout, in half the time."""
    from matplotlib.figure import Figure
    savefig = Figure.savefig

    def plainly(figure, file, **options):
        figure.set_layout_engine('none')
        savefig(figure, file, **options | {'dpi': 20})

    return plainly


@pytest.fixture
def plain_figures(monkeypatch, save_plainly):
    """Draw small figures without a layout, in half the time."""
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', save_plainly)


@pytest.fixture(scope='session')
def fit_quickly():
    """Return a replacement of Labeler.fit that takes 2 updates of the kernel."""
    from labeling.labeler import Labeler
    fit = Labeler.fit

    def quickly(self, transitions, actions, rng, kernel_updates=2, **options):
        return fit(self, transitions, actions, rng, kernel_updates, **options)

    return quickly


@pytest.fixture
def quick_labeler(monkeypatch, fit_quickly):
    """Fit the labeler with 2 updates of its kernel."""
    monkeypatch.setattr('labeling.labeler.Labeler.fit', fit_quickly)


@pytest.fixture
def quick_training(no_pictures, quick_labeler, short_episodes):
    """Train and evaluate quickly: without pictures, a good labeler and long episodes."""


# ------------------------------------------------------------------------------------------- scripts
POPEN = subprocess.Popen


class ForkedScript:
    """Stands in for `subprocess.Popen([python, script, *flags])`; its process has the modules loaded here."""

    def __init__(self, words, stdout, stderr, cwd='.', env=None, start_new_session=False):
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode = None
        self.pid = os.fork()
        if not self.pid:
            subprocess.Popen = POPEN  # a test may have replaced it by this class
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            end_with(lambda: run_as_main(words[1:], cwd, env or {}))

    def poll(self):
        return self.wait(os.WNOHANG)

    def wait(self, option=0):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, option)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def run_as_main(words, cwd, variables):
    """Run a script and its flags in this process."""
    sys.stdout = io.TextIOWrapper(io.FileIO(1, 'w', closefd=False), encoding='utf-8', line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, 'w', closefd=False), encoding='utf-8', line_buffering=True)
    os.chdir(cwd)
    os.environ.update(variables)
    sys.argv = words
    sys.path.insert(0, os.path.dirname(words[0]))
    runpy.run_path(words[0], run_name='__main__')


@pytest.fixture(scope='session')
def forked_script():
    """Return ForkedScript, or Popen where there is no fork."""
    if not hasattr(os, 'fork'):
        return subprocess.Popen

    # what every script imports late
    import matplotlib
    import ogbench  # noqa: F401
    import torch._dynamo  # noqa: F401
    matplotlib.use('Agg')
    import matplotlib.pyplot  # noqa: F401

    import evaluate  # noqa: F401
    import offline_trainer  # noqa: F401
    import online_trainer  # noqa: F401
    return ForkedScript


@pytest.fixture(scope='session')
def run_script(forked_script):
    """run_script(script, *flags, cwd, code=0) -> (stdout, stderr) of a process of its own.

    It starts with the modules that are loaded here, and with what is monkeypatched in them.
    """

    def run(script, *flags, cwd, code=0):
        words = [sys.executable, str(ROOT / script), *map(str, flags)]
        with tempfile.TemporaryFile('w+', encoding='utf-8') as out, \
                tempfile.TemporaryFile('w+', encoding='utf-8') as error:
            found = forked_script(words, stdout=out, stderr=error, cwd=cwd).wait()
            for file in (out, error):
                file.seek(0)
            stdout, stderr = out.read(), error.read()
        assert found == code, stderr
        return stdout, stderr

    return run


# ------------------------------------------------------------------------------------------- data and agents
def random_walk(length, rng, dim=DIM):
    """States (length, dim) of a drifting random walk, away from mean 0 and std 1."""
    return (3 + 2 * rng.standard_normal((length, dim)).cumsum(0)).astype(np.float32)


def borders(lengths):
    """First and last row (n,) of each of several trajectories in a row."""
    ends = np.cumsum(lengths).astype(np.int64) - 1
    return np.append(0, ends[:-1] + 1), ends


def compare(a, b, path=''):
    """Bitwise equality of nested dicts and lists of tensors and builtins; a NaN equals a NaN."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a.cpu().numpy(), b.cpu().numpy(), err_msg=path)
    elif dataclasses.is_dataclass(a):
        compare(vars(a), vars(b), path)
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            compare(a[key], b[key], f'{path}/{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            compare(*pair, f'{path}/{i}')
    else:
        assert a == b, path


class ConstantAgent:
    """An agent with one `action` for every environment, for `rollouts.run_episodes`."""

    def __init__(self, action):
        self.action = np.array(action, np.float32)

    def initial_state(self, batch_size):
        return None

    def reset_state(self, state, rows):
        return state

    def read_goal(self, goal):
        return goal

    def act(self, observations, goals, state):
        return np.tile(self.action, (len(observations), 1)), state


@pytest.fixture
def assert_refused():
    """assert_refused(name, words): `open_env` refuses a custom environment in one line that has the words."""
    def check(name, words):
        with pytest.raises(ValueError) as error:
            open_env(name)
        text = str(error.value)
        assert text.startswith(f'--env {name}: ') and '\n' not in text
        for word in words:
            assert word in text, text
    return check


@pytest.fixture
def constant_agent():
    return ConstantAgent


@pytest.fixture
def stub():
    return Stub


@pytest.fixture
def assert_same():
    return compare


@pytest.fixture
def make_config():
    return lambda **changes: OfflineConfig(**(TINY | changes))


@pytest.fixture
def make_dataset(make_config):
    """make_dataset(lengths, **sampling) -> TrajectoryDataset of random walks."""

    def make(lengths=LENGTHS, **sampling):
        observations = np.concatenate([random_walk(n, np.random.default_rng(i)) for i, n in enumerate(lengths)])
        return TrajectoryDataset(observations, *borders(lengths), **(make_config().sampling() | sampling))

    return make


@pytest.fixture
def make_replay(make_config):
    """make_replay(lengths, capacity) -> ReplayBuffer holding one random episode per length."""

    def make(lengths=(15, 8), capacity=1000, seed=7, **sampling):
        rng = np.random.default_rng(seed)
        replay = ReplayBuffer(DIM, ACTION_DIM, capacity, **(make_config().sampling() | sampling))
        for n in lengths:
            replay.add(random_walk(n, rng), rng.uniform(-1, 1, (n - 1, ACTION_DIM)).astype(np.float32))
        return replay

    return make


@pytest.fixture
def make_encoder():
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        sizes = dict(d_model=32, n_layers=2, d_state=8, headdim=16, context_length=12)
        return Encoder(DIM, **(sizes | changes))

    return make


@pytest.fixture
def make_agent(make_config, make_dataset):
    """make_agent(seed, **config) -> OfflineAgent with the statistics of the random walks."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        agent = OfflineAgent(DIM, make_config(**changes))
        agent.set_statistics(*make_dataset().statistics(), make_dataset().slowness())
        return agent

    return make


@pytest.fixture
def make_online(make_agent, make_dataset):
    """make_online(seed, action_dim, OfflineAgent, TrajectoryDataset of the map, **online config) -> OnlineAgent"""

    def make(seed=0, action_dim=ACTION_DIM, offline=None, data=None, **changes):
        offline = offline or make_agent(seed)
        torch.manual_seed(seed + 1)
        config = OnlineConfig(**{'batch_size': 4, 'idm_hidden_dim': 32, 'action_scale': 1.0} | changes)
        data_map = build_map(offline, config, data or make_dataset())
        return OnlineAgent(offline, -np.ones(action_dim), np.ones(action_dim), config, data_map)

    return make


@pytest.fixture
def states():
    """states(*shape, seed) -> observations (*shape, DIM), away from mean 0 and std 1."""
    return lambda *shape, seed=0: (
        3 + 5 * np.random.default_rng(seed).standard_normal((*shape, DIM))).astype(np.float32)


@pytest.fixture
def agent(make_online):
    return make_online()


@pytest.fixture
def save_online(tmp_path):
    """save_online(agent, ObservationModel, dataset) -> path of its online checkpoint"""

    def save(agent, observation_model=FULL_STATE, dataset='pointmaze-medium-navigate-v0', path=None):
        record = {'dataset': dataset, 'path': '', 'max_trajectories': 0, 'fingerprint': '',
                  'observation_model': dataclasses.asdict(observation_model)}
        path = path or tmp_path / 'last.pth'
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {'kind': 'online', 'dataset': dataset, 'data': record, 'agent': agent.state_dict()})
        return path

    return save


@pytest.fixture
def make_batches(make_dataset, make_replay):
    """make_batches(agent) -> OnlineBatches of offline states and of the agent's episodes."""
    return lambda agent: agent.open_batches(make_dataset(), make_replay((40, 8, 25)))


@pytest.fixture
def batches(agent, make_batches):
    return make_batches(agent)
