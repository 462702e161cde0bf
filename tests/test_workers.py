"""Environments in other processes: the same episodes, and clear ends."""

import os
import time

import numpy as np
import pytest

import workers
from ogbench_utils import make_env
from rollouts import run_episodes
from workers import EnvWorkers, open_envs, safe_envs

DATASET = 'antmaze-medium-navigate-v0'


class Walker:
    """Random actions that depend on what is seen, so that a single different bit would show."""

    def initial_state(self, n):
        return None

    def reset_state(self, state, rows):
        return state

    def act(self, observations, goals, state):
        return np.sin(1e3 * observations[:, :8] + goals[:, :1]).astype(np.float32), state


@pytest.fixture(scope='module')
def pool():
    envs = EnvWorkers(DATASET, 3, 2)
    yield envs
    envs.close()


def test_episodes_are_those_of_one_process(pool):
    """Five jobs in three environments in two workers, cut after 100 steps: every number is the same."""
    jobs = [(task, 10 + task) for task in (1, 2, 3, 4, 5)]
    here, there = ([episode for episode in run_episodes(envs, jobs, Walker(), max_steps=100)]
                   for envs in (safe_envs(lambda: make_env(DATASET), 3), pool))
    assert len(here) == len(there) == 3 and sum(episode['length'] for episode in here) >= 98
    for one, other in zip(here, there, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value, strict=isinstance(value, np.ndarray), err_msg=name)


def test_spaces_are_known(pool):
    assert len(pool) == 3 and pool[0].observation_space.shape == (29,) and pool[2].action_space.shape == (8,)


def test_how_many_processes(monkeypatch):
    """One per core, at most four and at most one per environment; one means none."""
    made = []
    monkeypatch.setattr(workers, 'EnvWorkers', lambda dataset, n, processes: made.append((n, processes)))
    for cores in (2, 16):
        monkeypatch.setattr(workers, 'cpu_cores', lambda cores=cores: cores)
        for n in (3, 8):
            open_envs(DATASET, n)
    open_envs(DATASET, 8, 6)
    assert made == [(3, 2), (8, 2), (3, 3), (8, 4), (8, 6)]
    envs = open_envs(DATASET, 2, 1, lambda dataset: make_env(dataset))
    assert isinstance(envs, list) and len(envs) == 2
    with pytest.raises(ValueError, match='--env_processes -1'):
        open_envs(DATASET, 2, -1)


def test_a_dead_worker_is_an_error_that_says_so():
    envs = EnvWorkers(DATASET, 2, 2)
    envs.workers[1].kill()
    with pytest.raises(OSError, match='environment process ended.*--env_processes 1'):
        envs.step([0, 1], np.zeros((2, 8), np.float32))
    envs.close()


def test_what_goes_wrong_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match='unknown --dataset antmaze-tiny'):
        EnvWorkers('antmaze-tiny-navigate-v0', 2, 2)


def test_workers_end_with_their_owner():
    envs = EnvWorkers(DATASET, 1, 1)
    process = envs.workers[0]
    del envs
    deadline = time.time() + 10
    while process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    assert process.returncode == 0


def test_workers_do_not_import_torch(tmp_path):
    """It would cost each of them 300 MB and seconds."""
    import subprocess
    import sys

    code = "import sys, workers; from ogbench_utils import make_env; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=os.path.dirname(workers.__file__)).returncode == 0
