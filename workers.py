"""Environments that are made anew after a fault, and the same in processes of their own, stepped at the same time;
the results are those of a list of them.

A worker is this file run as a script. Messages are pickles on its standard input and output, and it ends when its
input does, so that nothing outlives the program that started it. It never imports torch.
"""

import os
import pickle
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from ogbench_utils import MUJOCO_WARNINGS, make_env, reset_env

MAX_FAULTS = 5  # environment faults in a row that end a run


def cpu_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def open_envs(dataset, n, processes=0, make=make_env):
    """-> n environments of a dataset for `run_episodes`, spread over `processes` (0: one per core, at most 4; with 1
    they live in this process and come from `make`). Raises ValueError for a negative number."""
    if processes < 0:
        raise ValueError(f'--env_processes {processes}: must be at least 0')
    processes = min(processes or min(cpu_cores(), 4), n)
    return EnvWorkers(dataset, n, processes) if processes > 1 else safe_envs(lambda: make(dataset), n)


class SafeEnv:
    """An environment that is made anew when it raises, returns NaN or loses its physics; such an episode ends, with
    the reason in info['fault']. `faults` is a list that several of them share: those since the last episode that
    ended well. The fifth in a row raises OSError with the cause."""

    def __init__(self, make, faults):
        self.make, self.faults, self.env = make, faults, make()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.observation = None

    def reset(self, **options):
        """As gymnasium's; tried again in a new environment where it fails."""
        while True:
            try:
                self.observation, info = self.env.reset(**options)
                self._check(self.observation)
                return self.observation, info
            except Exception as error:  # whatever it is, it is counted, shown, and raised in the end
                self._fault(error)

    def step(self, action):
        """As gymnasium's; after a fault the last good observation, truncated, with info['fault']."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._check(observation, reward)
        except Exception as error:  # as in reset
            self._fault(error)
            return self.observation, 0.0, False, True, {'success': 0.0, 'fault': str(error)}
        self.observation = observation
        if terminated or truncated:
            self.faults.clear()
        return observation, reward, terminated, truncated, info

    def _check(self, observation, reward=0.0):
        unstable = [text for text in MUJOCO_WARNINGS if 'unstable' in text]
        MUJOCO_WARNINGS.clear()
        if unstable:  # MuJoCo has put the robot back to the origin and says nothing else
            raise FloatingPointError(unstable[0])
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise FloatingPointError(f'observation or reward is not finite: {observation}, {reward}')

    def _fault(self, error):
        cause = f'{type(error).__name__}: {error}'
        self.faults.append(cause)
        if len(self.faults) == MAX_FAULTS:
            raise OSError(f'the environment failed {MAX_FAULTS} times in a row, at last with {cause}') from error
        tqdm.write(f'environment fault, episode ended, environment made anew: {cause}', file=sys.stderr)
        self.env = self.make()


def safe_envs(make, n):
    """n environments that share one count of faults; `make()` gives one."""
    faults = []
    return [SafeEnv(make, faults) for _ in range(n)]


class EnvWorkers:
    """Environment i lives in worker i % processes. Raises OSError if a worker ends or gives up."""

    def __init__(self, dataset, n, processes):
        self.n, self.workers = n, []
        for k in range(processes):
            command = [sys.executable, __file__, dataset, str(len(range(k, n, processes)))]
            self.workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        self.close = weakref.finalize(self, _close, self.workers)
        self.spaces = [self._receive(worker) for worker in self.workers][0]

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        """What is the same for all: observation_space and action_space."""
        return self.spaces

    def reset(self, i, task_id, seed):
        """`reset_env` of environment i -> (observation, goal)."""
        worker = self.workers[i % len(self.workers)]
        self._send(worker, ('reset', i // len(self.workers), task_id, seed))
        return self._receive(worker)

    def step(self, rows, actions):
        """Environments `rows` at the same time, each with its row of `actions` (n, A) -> gymnasium's five values of
        each, in order; info has success and, after a fault, fault."""
        k, results = len(self.workers), {}
        parts = [[i for i in rows if i % k == w] for w in range(k)]
        for worker, part in zip(self.workers, parts, strict=True):
            self._send(worker, ('step', [i // k for i in part], actions[part]))
        for worker, part in zip(self.workers, parts, strict=True):
            results.update(zip(part, self._receive(worker), strict=True))
        return [results[i] for i in rows]

    def _send(self, worker, message):
        try:
            pickle.dump(message, worker.stdin)
            worker.stdin.flush()
        except OSError:  # the reason comes out of _receive
            pass

    def _receive(self, worker):
        try:
            answer = pickle.load(worker.stdout)
        except EOFError as error:
            raise OSError(f'an environment process ended with exit code {worker.wait()}; '
                          '--env_processes 1 does without them') from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _close(workers):
    for worker in workers:
        worker.stdin.close()
    for worker in workers:
        worker.wait()
        worker.stdout.close()


def serve(dataset, n, messages, answers):
    """Answer messages about n environments until there are no more."""
    def answer(value):
        pickle.dump(value, answers)
        answers.flush()

    try:
        envs = safe_envs(lambda: make_env(dataset), n)
        answer(SimpleNamespace(observation_space=envs[0].observation_space, action_space=envs[0].action_space))
        while True:
            try:
                kind, *content = pickle.load(messages)
            except EOFError:
                return
            if kind == 'reset':
                i, task_id, seed = content
                answer(reset_env(envs[i], task_id, seed))
                continue
            results = []
            for i, action in zip(*content, strict=True):
                observation, *outcome, info = envs[i].step(action)
                results.append((np.asarray(observation, np.float32), *outcome,
                                {key: info[key] for key in ('success', 'fault') if key in info}))
            answer(results)
    except (OSError, ValueError) as error:  # what a run ends with; anything else is a traceback of this process
        answer(error)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the program that started us decides
    with os.fdopen(os.dup(1), 'wb') as stdout:
        os.dup2(2, 1)  # whatever a library prints must not land among the answers
        serve(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, stdout)
