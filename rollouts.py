"""Episodes: run in lockstep, evaluated by OGBench's protocol, or collected with exploration."""

import dataclasses
import math
import time

import numpy as np

from environments.checks import num_tasks
from ogbench_utils import episode_seed, reset_env
from support.contents import Number, check_layout
from utils import linear_schedule, unnormalize_actions

EPISODE_MEANS = ('success', 'reward', 'length')
ROUNDS = 8  # of a run with --max_steps, about
ROUND_STEPS = 1000  # environment steps of a round without it, about
SCHEDULE_EPISODES = 200  # over which epsilon and action noise fall without --max_steps


@dataclasses.dataclass
class Episode:
    """One episode of T steps; a fault ends it before the step that failed, so that T may be 0."""

    job: int  # its index among the jobs
    task: int  # counted from 1
    seed: int  # of start and goal
    goal: np.ndarray  # (S,) float32
    observations: np.ndarray  # (T + 1, S) float32; a list until `finish`
    actions: np.ndarray  # (T, A) float32; a list until `finish`
    success: float = 0.0  # 0 or 1, at the last step
    reached: float = 0.0  # 0 or 1, whether some step was a success
    reward: float = 0.0  # sum over the steps
    cut: bool = False  # ended by `max_steps`, not by the environment
    fault: str = ''  # message of the environment's fault, if any

    @property
    def length(self):
        """Return the number of environment steps, T."""
        return len(self.actions)

    def finish(self, action_dim):
        """Turn the lists of a running episode into arrays, and return the episode."""
        self.observations = np.stack(self.observations)
        self.actions = np.array(self.actions, np.float32).reshape(-1, action_dim)
        return self


def run_episodes(envs, jobs, agent, act=None, max_steps=None):
    """Run episodes in lockstep and yield each `Episode` when it ends.

    Idle environments keep their rows in the batch, so that an action does not depend on the number
    of running episodes.

    Args:
        envs: list of n environments.
        jobs: iterable of (task, seed), one for each episode.
        agent: OnlineAgent.
        act: function from observations (n, S), goals (n, S) and a state to actions (n, A) and the
            next state; default `agent.act`.
        max_steps: environment steps in all, at which the running episodes are cut; None: no limit.
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
        # begin an episode in each idle environment while there are jobs
        fresh = np.zeros(n, bool)
        for i in range(n):
            job = next(jobs, None) if episodes[i] is None else None
            if job is None:
                continue

            number, (task, seed) = job
            observation, goal = reset_env(envs[i], task, seed)
            goal = agent.read_goal(goal)
            episodes[i] = Episode(number, task, seed, goal, [observation], [])
            if observations is None:
                observations = np.zeros((n, len(goal)), np.float32)
                goals = np.zeros((n, len(goal)), np.float32)
            observations[i] = observation
            goals[i] = goal
            fresh[i] = True

        # stop if nothing runs, or if one more step of each episode exceeds the limit
        running = [i for i in range(n) if episodes[i] is not None]
        if not running or steps + len(running) > limit:
            return
        if fresh.any():
            state = agent.reset_state(state, fresh)

        # choose the actions of all rows at once
        actions, state = act(observations, goals, state)
        steps += len(running)
        last_round = steps + len(running) > limit

        # one step in each running environment
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
            episode.reached = max(episode.reached, episode.success)
            episode.cut = last_round and not (terminated or truncated)

            if terminated or truncated or episode.cut:
                episodes[i] = None
                yield episode.finish(actions.shape[1])

        if last_round:
            return


def evaluate(agent, envs, episodes_per_task, seed, progress=None, tasks=None):
    """Evaluate an agent by OGBench's protocol: no noise, success at the last step, mean over tasks.

    Episode (task, i) has the same seed for every agent.

    Args:
        agent: OnlineAgent. envs: list of environments.
        seed: int, from which the seeds of the episodes are derived.
        progress: tqdm bar of episodes, or None.
        tasks: task numbers, counted from 1; default: all tasks of the environment.

    Returns:
        Dict of metrics with OGBench's names, and the list of episodes in order of task and number.
    """
    # run the episodes
    tasks = tasks or range(1, num_tasks(envs[0]) + 1)
    jobs = [(task, episode_seed(seed, 0, task, i)) for task in tasks for i in range(episodes_per_task)]
    episodes = [None] * len(jobs)
    for episode in run_episodes(envs, jobs, agent):
        episodes[episode.job] = episode
        if progress is not None:
            progress.update()

    # success of each task, and the mean over tasks
    metrics = {}
    for task in tasks:
        success = [episode.success for episode in episodes if episode.task == task]
        metrics[f'evaluation/task{task}_success'] = float(np.mean(success))
    metrics['evaluation/overall_success'] = float(np.mean(list(metrics.values())))
    metrics['evaluation/episode_length'] = float(np.mean([episode.length for episode in episodes]))
    return metrics, episodes


@dataclasses.dataclass
class CollectedRound:
    """One round of exploration."""

    episodes: list[Episode]
    steps: int  # environment steps
    metrics: dict  # name -> float, for the CSV


class Collector:
    """Collect rounds of episodes with exploration; counts its episodes and environment steps.

    Args:
        config: OnlineTrainConfig. envs: list of environments. agent: OnlineAgent.
    """

    def __init__(self, config, envs, agent):
        self.config = config
        self.envs = envs
        self.agent = agent
        self.rng = np.random.default_rng([config.seed, 2])
        self.steps = 0
        self.episodes = 0
        self.length = 0.0  # mean of the episodes of the last round that were not cut; 0: none was whole

    @property
    def done(self):
        """Return whether the budget of episodes or steps is spent."""
        c = self.config
        return (self.episodes >= c.max_episodes
                or bool(c.max_steps) and self.steps + c.num_envs > c.max_steps)

    def schedules(self):
        """Return epsilon and the std of the action noise of the next episode.

        They fall over --schedule_episodes, else from the end of the random steps to --max_steps.
        """
        c = self.config
        done, duration = self.episodes, c.schedule_episodes or SCHEDULE_EPISODES
        if c.max_steps and not c.schedule_episodes:
            done, duration = self.steps - c.random_steps, c.max_steps - c.random_steps
        return (linear_schedule(c.epsilon_start, c.epsilon_end, duration, done),
                linear_schedule(c.action_noise_start, c.action_noise_end, duration, done))

    def episodes_due(self):
        """Return the number of episodes of the next round of the agent: about `ROUNDS` rounds in --max_steps.

        Without --max_steps a round has whole sets of --num_envs episodes, and about `ROUND_STEPS` steps.
        """
        c = self.config
        length = self.length or math.inf  # until some episode is whole: as few episodes as possible
        if c.max_steps:
            count = max(1, round(c.max_steps / ROUNDS / length))
        else:
            count = c.num_envs * max(1, round(ROUND_STEPS / (c.num_envs * length)))
        return min(c.max_episodes - self.episodes, count)

    def round(self, progress, random_steps=0):
        """Collect `random_steps` random steps in the first round, later whole episodes.

        Args:
            progress: its `update(n)` counts environment steps with --max_steps, else episodes.
            random_steps: random steps of this round, in place of those of the config and of episodes.

        Returns:
            CollectedRound.
        """
        # schedules and the steps that are left
        config = self.config
        begin = time.perf_counter()
        epsilon, noise = self.schedules()
        left = config.max_steps - self.steps if config.max_steps else None

        # random actions, or the agent with goal-biased subgoals and action noise
        random_steps = random_steps or (self.steps == 0 and config.random_steps)
        if random_steps:
            explorer = RandomActions(self.envs[0].action_space, config.random_range, len(self.envs),
                                     self.rng)
            left = random_steps if left is None else min(random_steps, left)
            count = config.max_episodes - self.episodes
        else:
            explorer = Exploration(self.agent, epsilon, noise, self.rng)
            count = self.episodes_due()

        # run the tasks in turn, each episode with its own seed
        tasks = num_tasks(self.envs[0])
        numbers = range(self.episodes, self.episodes + count)
        jobs = ((number % tasks + 1, episode_seed(config.seed, 3, number)) for number in numbers)
        episodes = []
        for episode in run_episodes(self.envs, jobs, self.agent, explorer.act, left):
            episodes.append(episode)
            progress.update(episode.length if config.max_steps else 1)

        # counters and metrics
        steps = sum(episode.length for episode in episodes)
        if whole := [episode.length for episode in episodes if not episode.cut]:
            self.length = float(np.mean(whole))
        self.steps += steps
        self.episodes += len(episodes)
        speed = steps / (time.perf_counter() - begin)
        metrics = {
            'collect/epsilon': epsilon,
            'collect/action_noise': noise,
            **episode_metrics(episodes),
            'collect/goal_biased_rate': explorer.biased_rate,
            'episodes': self.episodes,
            'time/steps_per_second': speed,
        }
        return CollectedRound(episodes, steps, metrics)

    def state_dict(self):
        """Return the counters and the state of the generator as builtins."""
        return {'rng': self.rng.bit_generator.state, 'steps': self.steps, 'episodes': self.episodes,
                'length': self.length}

    def load_state_dict(self, state):
        """Continue from what `state_dict` returned; raise ValueError if it is none."""
        check_layout(state, {'steps': Number(int, least=0), 'episodes': Number(int, least=0),
                             'length': Number(float, least=0)})
        self.rng.bit_generator.state = state['rng']
        self.steps = state['steps']
        self.episodes = state['episodes']
        self.length = state['length']


def episode_metrics(episodes):
    """Return a dict: number of faults, if any; rate of whole episodes; mean success, reward and length.

    Means are over whole episodes, or over all if none is whole.
    """
    metrics = {}
    faults = sum(bool(episode.fault) for episode in episodes)
    if faults:
        metrics['collect/faults'] = faults
    whole = [episode for episode in episodes if not episode.cut and not episode.fault]
    metrics['collect/whole_rate'] = len(whole) / len(episodes)
    for name in EPISODE_MEANS:
        metrics[f'collect/{name}'] = float(np.mean([getattr(episode, name) for episode in whole or episodes]))
    return metrics


class RandomActions:
    """Draw actions uniformly from `spread` times the action range, then clip them to the range.

    Args:
        space: action space. spread: float. num_envs: int. rng: numpy Generator.
    """

    biased_rate = 0.0

    def __init__(self, space, spread, num_envs, rng):
        self.space = space
        self.spread = spread
        self.shape = (num_envs, *space.shape)
        self.rng = rng

    def act(self, observations, goals, state):
        """Return random actions (B, A) and the state unchanged."""
        actions = self.rng.uniform(-1, 1, self.shape) * self.spread
        return unnormalize_actions(np.clip(actions, -1, 1), self.space.low, self.space.high), state


class Exploration:
    """Act with goal-biased subgoals and Gaussian action noise.

    Args:
        agent: OnlineAgent. epsilon: probability of goal-biased subgoals.
        noise: std of the action noise, in half widths of the action range. rng: numpy Generator.
    """

    def __init__(self, agent, epsilon, noise, rng):
        self.agent = agent
        self.planner = agent.explorer(epsilon, rng)
        self.noise = noise
        self.rng = rng
        self.biased = []  # (B,) bool of each step

    def act(self, observations, goals, state):
        """Return the agent's actions (B, A) for observations and goals (B, S), and its next state."""
        actions, state = self.agent.act(observations, goals, state, self.noise, self.rng, self.planner)
        self.biased.append(self.planner.biased)
        return actions, state

    @property
    def biased_rate(self):
        """Return the fraction of goal-biased subgoals."""
        return float(np.mean(self.biased)) if self.biased else 0.0
