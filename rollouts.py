"""Episodes: run over several environments in lock-step, evaluated by OGBench's protocol, collected with exploration."""

import dataclasses
import time

import numpy as np

from environments.safe_env import num_tasks
from ogbench_utils import episode_seed, reset_env
from utils import linear_schedule, unnormalize_actions

SHORT_ONES = 10  # episodes of each environment in a round, where --episode_steps cuts them


@dataclasses.dataclass
class Episode:
    """One episode from reset to end. A fault ends it before the step that failed, so that T may be 0."""

    job: int  # its number among the jobs
    task: int
    seed: int
    goal: np.ndarray  # (S,)
    observations: np.ndarray  # (T + 1, S) float32; a list while it runs, as the actions
    actions: np.ndarray  # (T, A) float32
    success: float = 0.0  # 0 or 1, at the last step
    reward: float = 0.0  # sum over the steps
    cut: bool = False  # ended by `max_steps`, not by the environment
    fault: str = ''  # what went wrong

    @property
    def length(self):
        """Environment steps."""
        return len(self.actions)

    def finish(self, action_dim):
        """Lists become arrays."""
        self.observations = np.stack(self.observations)
        self.actions = np.array(self.actions, np.float32).reshape(-1, action_dim)
        return self


def run_episodes(envs, jobs, agent, act=None, max_steps=None, episode_steps=None):
    """Run `jobs`, an iterable of (task_id, seed), in lock-step over the list `envs`; yields an `Episode` when it ends.

    `act(observations, goals, state) -> (actions, state)`, default `agent.act`; the rows of idle environments are
    included, so that the batch keeps its size and an action never depends on how many episodes are left.
    After `max_steps` environment steps the episodes still running are cut, each one after `episode_steps` of its own.
    """
    n = len(envs)
    act = act or agent.act
    limit = float('inf') if max_steps is None else max_steps
    jobs = enumerate(jobs)
    episodes = [None] * n  # the one that runs in each environment
    state = agent.initial_state(n)
    observations = goals = None
    steps = 0

    while True:
        fresh = np.zeros(n, bool)
        for i in range(n):
            job = next(jobs, None) if episodes[i] is None else None
            if job is None:
                continue

            number, (task, seed) = job
            observation, goal = reset_env(envs[i], task, seed)
            episodes[i] = Episode(number, task, seed, goal, [observation], [])
            if observations is None:
                observations = np.zeros((n, len(goal)), np.float32)
                goals = np.zeros((n, len(goal)), np.float32)
            observations[i] = observation
            goals[i] = goal
            fresh[i] = True

        running = [i for i in range(n) if episodes[i] is not None]
        if not running or steps + len(running) > limit:
            return
        if fresh.any():
            state = agent.reset_state(state, fresh)

        actions, state = act(observations, goals, state)
        steps += len(running)
        last_round = steps + len(running) > limit

        for i in running:
            episode = episodes[i]
            observation, reward, terminated, truncated, info = envs[i].step(actions[i])
            episode.fault = info.get('fault', '')
            if not episode.fault:
                observations[i] = observation
                episode.observations.append(observations[i].copy())
                episode.actions.append(actions[i].copy())
            episode.reward += float(reward)
            episode.success = float(info['success'])
            episode.cut = last_round or episode.length == episode_steps

            if terminated or truncated or episode.cut:
                episodes[i] = None
                yield episode.finish(actions.shape[1])

        if last_round:
            return


def evaluate(agent, envs, episodes_per_task, seed, progress=None, tasks=None):
    """OGBench's protocol: `episodes_per_task` episodes of each task, no noise; success is info['success'] at the
    last step, the overall figure the mean over tasks. Episode (task, i) has the same seed whatever the agent.
    `tasks`: their numbers, default all that the environment has.

    Returns (metrics with OGBench's names, list of episodes in order of task and number).
    """
    tasks = tasks or range(1, num_tasks(envs[0]) + 1)
    jobs = [(task, episode_seed(seed, 0, task, i)) for task in tasks for i in range(episodes_per_task)]
    episodes = [None] * len(jobs)
    for episode in run_episodes(envs, jobs, agent):
        episodes[episode.job] = episode
        if progress is not None:
            progress.update()

    metrics = {}
    for task in tasks:
        success = [episode.success for episode in episodes if episode.task == task]
        metrics[f'evaluation/task{task}_success'] = float(np.mean(success))
    metrics['evaluation/overall_success'] = float(np.mean(list(metrics.values())))
    metrics['evaluation/episode_length'] = float(np.mean([episode.length for episode in episodes]))
    return metrics, episodes


@dataclasses.dataclass
class CollectedRound:
    """What one round of exploration brought."""

    episodes: list[Episode]
    steps: int  # environment steps
    numbers: dict  # name -> float, for the CSV


class Collector:
    """Runs rounds of episodes with exploration; its counters and generator are part of a checkpoint."""

    def __init__(self, config, envs, agent):
        self.config = config
        self.envs = envs
        self.agent = agent
        self.rng = np.random.default_rng([config.seed, 2])
        self.steps = 0
        self.episodes = 0

    @property
    def done(self):
        c = self.config
        return self.episodes >= c.max_episodes or bool(c.max_steps) and self.steps + c.num_envs > c.max_steps

    def schedules(self):
        """-> (epsilon, standard deviation of the action noise) of the next episode."""
        c = self.config
        return (linear_schedule(c.epsilon_start, c.epsilon_end, c.schedule_episodes, self.episodes),
                linear_schedule(c.action_noise_start, c.action_noise_end, c.schedule_episodes, self.episodes))

    def round(self, progress):
        """One episode per environment, `SHORT_ONES` where these are cut short (the first round: `random_steps` random
        steps) -> CollectedRound."""
        config = self.config
        begin = time.perf_counter()
        epsilon, noise = self.schedules()
        space = self.envs[0].action_space
        biased = []

        # of the same spread whatever the correlation
        last = np.zeros((len(self.envs), *space.shape))

        def act_randomly(observations, goals, state):
            fresh = self.rng.uniform(-1, 1, last.shape) * config.random_range
            last[:] = config.random_correlation * last + np.sqrt(1 - config.random_correlation**2) * fresh
            return unnormalize_actions(np.clip(last, -1, 1), space.low, space.high), state

        def act(observations, goals, state):
            actions, state = self.agent.act(observations, goals, state, epsilon, noise, self.rng)
            biased.append(state.biased)
            return actions, state

        left = config.max_steps - self.steps if config.max_steps else None
        counted = True  # among --max_episodes
        if self.steps == 0 and config.random_steps:
            act = act_randomly
            left = min(config.random_steps, left or config.random_steps)
            episode_steps = config.random_episode_steps or None
            count = config.max_episodes
            if episode_steps:
                count = left  # until the steps are spent
                counted = False
        else:
            episode_steps = config.episode_steps or None
            count = config.num_envs * (SHORT_ONES if episode_steps else 1)
            count = min(config.max_episodes - self.episodes, count)

        tasks = num_tasks(self.envs[0])
        numbers = range(self.episodes, self.episodes + count)
        jobs = ((number % tasks + 1, episode_seed(config.seed, 3, number)) for number in numbers)
        episodes = []
        for episode in run_episodes(self.envs, jobs, self.agent, act, left, episode_steps):
            episodes.append(episode)
            if config.max_steps:
                progress.update(episode.length)
            elif counted:
                progress.update(1)

        steps = sum(episode.length for episode in episodes)
        self.steps += steps
        if counted:
            self.episodes += len(episodes)

        row = {'collect/epsilon': epsilon, 'collect/action_noise': noise}
        faults = sum(bool(episode.fault) for episode in episodes)
        if faults:
            row['collect/faults'] = faults
        whole = [episode for episode in episodes if not episode.cut and not episode.fault] or episodes
        for name in ('success', 'reward', 'length'):
            row[f'collect/{name}'] = float(np.mean([getattr(episode, name) for episode in whole]))
        row['collect/goal_biased_rate'] = float(np.mean(biased)) if biased else 0.0
        row['episodes'] = self.episodes
        row['time/steps_per_second'] = steps / (time.perf_counter() - begin)
        return CollectedRound(episodes, steps, row)

    def state_dict(self):
        """Counters and generator, in builtins."""
        return {'rng': self.rng.bit_generator.state, 'steps': self.steps, 'episodes': self.episodes}

    def load_state_dict(self, state):
        """Go on where `state_dict` was taken."""
        self.rng.bit_generator.state = state['rng']
        self.steps = state['steps']
        self.episodes = state['episodes']
