"""Episodes: run over several environments in lock-step, evaluated by OGBench's protocol, collected with exploration."""

import time

import numpy as np

from ogbench_utils import episode_seed, reset_env
from utils import linear_schedule
from workers import EnvWorkers


def run_episodes(envs, jobs, agent, act=None, max_steps=None):
    """Run `jobs`, an iterable of (task_id, seed), in lock-step over `envs` (a list, or `EnvWorkers`, which step at
    the same time and change no result); yields episodes as they end: dict(job, task, seed, goal, observations
    (T + 1, S), actions (T, A), success, reward, length, cut, fault); an episode with a fault ends before the step
    that failed, so that T may be 0.

    `act(observations, goals, state) -> (actions, state)`, default `agent.act`; the rows of idle environments are
    included, so that the batch keeps its size and an action never depends on how many episodes are left.
    After `max_steps` environment steps the episodes still running are cut.
    """
    jobs, act, n = enumerate(jobs), act or agent.act, len(envs)
    episodes, state, steps, observations, goals = [None] * n, agent.initial_state(n), 0, None, None
    limit = float('inf') if max_steps is None else max_steps
    if isinstance(envs, EnvWorkers):
        reset, step_all = envs.reset, envs.step
    else:
        def reset(i, task, seed):
            return reset_env(envs[i], task, seed)

        def step_all(rows, actions):
            return [envs[i].step(actions[i]) for i in rows]
    while True:
        fresh = np.zeros(n, bool)
        for i in range(n):
            if episodes[i] is None and (job := next(jobs, None)) is not None:
                number, (task, seed) = job
                observation, goal = reset(i, task, seed)
                episodes[i] = dict(job=number, task=task, seed=seed, goal=goal, observations=[observation], actions=[],
                                   success=0.0, reward=0.0, cut=False, fault='')
                if observations is None:
                    observations, goals = np.zeros((2, n, len(goal)), np.float32)
                observations[i], goals[i], fresh[i] = observation, goal, True
        running = [i for i in range(n) if episodes[i] is not None]
        if not running or steps + len(running) > limit:
            return
        if fresh.any():
            state = agent.reset_state(state, fresh)
        actions, state = act(observations, goals, state)
        steps += len(running)
        for i, result in zip(running, step_all(running, actions), strict=True):
            episode, (observation, reward, terminated, truncated, info) = episodes[i], result
            episode['fault'] = info.get('fault', '')
            if not episode['fault']:
                observations[i] = observation
                episode['observations'].append(observations[i].copy())
                episode['actions'].append(actions[i].copy())
            episode['reward'] += float(reward)
            episode['success'] = float(info['success'])
            episode['cut'] = steps + len(running) > limit
            if terminated or truncated or episode['cut']:
                episode.update(observations=np.stack(episode['observations']), length=len(episode['actions']),
                               actions=np.array(episode['actions']).reshape(-1, actions.shape[1]))
                episodes[i] = None
                yield episode
        if steps + len(running) > limit:
            return


def evaluate(agent, envs, episodes_per_task, seed, progress=None, tasks=(1, 2, 3, 4, 5)):
    """OGBench's protocol: `episodes_per_task` episodes of each task, no noise; success is info['success'] at the
    last step, the overall figure the mean over tasks. Episode (task, i) has the same seed whatever the agent.

    Returns (metrics with OGBench's names, list of episodes in order of task and number).
    """
    jobs = [(task, episode_seed(seed, 0, task, i)) for task in tasks for i in range(episodes_per_task)]
    episodes = [None] * len(jobs)
    for episode in run_episodes(envs, jobs, agent):
        episodes[episode['job']] = episode
        if progress is not None:
            progress.update()
    metrics = {f'evaluation/task{task}_success': float(np.mean([e['success'] for e in episodes if e['task'] == task]))
               for task in tasks}
    metrics['evaluation/overall_success'] = float(np.mean(list(metrics.values())))
    metrics['evaluation/episode_length'] = float(np.mean([e['length'] for e in episodes]))
    return metrics, episodes


class Collector:
    """Runs rounds of episodes with exploration; its counters and generator are part of a checkpoint."""

    def __init__(self, config, envs, agent):
        self.config, self.envs, self.agent = config, envs, agent
        self.rng = np.random.default_rng([config.seed, 2])
        self.steps = self.episodes = 0

    @property
    def done(self):
        c = self.config
        return self.episodes >= c.max_episodes or bool(c.max_steps) and self.steps + c.num_envs > c.max_steps

    def schedules(self):
        """-> (epsilon, standard deviation of the action noise) of the next episode."""
        c = self.config
        return (linear_schedule(c.epsilon_start, c.epsilon_end, c.schedule_episodes, self.episodes),
                linear_schedule(c.action_noise_start, c.action_noise_end, c.schedule_episodes, self.episodes))

    def round(self, progress, row):
        """One episode per environment (the first round: `random_steps` random steps) -> episodes; `row` gets
        the round's numbers."""
        c, begin, (epsilon, noise) = self.config, time.perf_counter(), self.schedules()
        space, biased = self.envs[0].action_space, []

        def act_randomly(observations, goals, state):
            actions = self.rng.uniform(space.low, space.high, (len(observations), *space.shape)) * c.random_range
            return np.clip(actions, space.low, space.high).astype(np.float32), state

        def act(observations, goals, state):
            actions, state = self.agent.act(observations, goals, state, epsilon, noise, self.rng)
            biased.append(state.biased)
            return actions, state

        left = c.max_steps - self.steps if c.max_steps else None
        if self.steps == 0 and c.random_steps:
            act, left, count = act_randomly, min(c.random_steps, left or c.random_steps), c.max_episodes
        else:
            count = min(c.max_episodes - self.episodes, c.num_envs)
        jobs = ((n % 5 + 1, episode_seed(c.seed, 3, n)) for n in range(self.episodes, self.episodes + count))
        episodes = []
        for episode in run_episodes(self.envs, jobs, self.agent, act, left):
            episodes.append(episode)
            progress.update(episode['length'] if c.max_steps else 1)
        steps = sum(episode['length'] for episode in episodes)
        self.steps, self.episodes = self.steps + steps, self.episodes + len(episodes)
        whole = [e for e in episodes if not e['cut'] and not e['fault']] or episodes
        if faults := sum(bool(e['fault']) for e in episodes):
            row['collect/faults'] = faults
        row |= {f'collect/{k}': float(np.mean([e[k] for e in whole])) for k in ('success', 'reward', 'length')}
        row |= {'collect/goal_biased_rate': float(np.mean(biased)) if biased else 0.0, 'episodes': self.episodes,
                'time/steps_per_second': steps / (time.perf_counter() - begin)}
        return episodes

    def content(self):
        return {'rng': self.rng.bit_generator.state, 'steps': self.steps, 'episodes': self.episodes}

    def restore(self, content):
        self.rng.bit_generator.state = content['rng']
        self.steps, self.episodes = content['steps'], content['episodes']
