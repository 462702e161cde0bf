"""Evaluate an online checkpoint by OGBench's protocol: every task, success at the last step.

    python evaluate.py --checkpoint A/last.pth --episodes_per_task 50
    python evaluate.py --checkpoint A/last.pth --compare B/last.pth      paired, on the same episodes
    python evaluate.py --checkpoint A/last.pth --compare A/last.pth --compare_set plan=False
    python evaluate.py --checkpoint A/last.pth --stuck_noise 1           noise while the robot is stuck
    python evaluate.py --checkpoint A/last.pth --video                   one video per task
"""

import dataclasses
import json
import signal
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np
from tqdm import tqdm

from environments.checks import num_tasks
from environments.safe_env import open_envs
from figures.pictures import draw_evaluation, open_maze
from figures.videos import record
from mamba import choose_backend
from observing.observation_models import observation_model_of
from ogbench_utils import make_env
from online_agent import OnlineAgent, OnlineConfig
from rollouts import evaluate
from support.devices import choose_device, set_seed
from support.files import load_checkpoint, prefix_errors, write_atomic
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.stats import paired_comparison, wilson_interval


@dataclasses.dataclass
class EvaluateConfig:
    """what to evaluate, and how long"""

    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    dataset: str = flag('', 'dataset or module:factory of the environment (default: as trained)')
    episodes_per_task: int = flag(50, 'episodes of each task', least=1)
    num_envs: int = flag(8, 'episodes run in parallel', least=1)
    seed: int = flag(0, 'seed of starts and goals', least=0, most=2**32 - 1)
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan',
                              choices=('auto', 'torch', 'mamba_ssm'))
    plan: bool | None = flag(None, 'planning on the data (default: as trained)', type=bool)
    action_scale: float | None = flag(None, 'factor on predicted actions (default: as trained)',
                                      type=float, above=0)
    stuck_noise: float | None = flag(None, 'std of action noise once stuck (default: as trained)',
                                     type=float, least=0)
    compare: str = flag('', 'second checkpoint, evaluated on the same episodes')
    compare_set: str = flag('', 'settings of --compare, such as plan=False,action_scale=1')
    video: bool = flag(False, 'videos of one episode per task; needs EGL or OSMesa')
    output: str = flag('', 'JSON file for the metrics; default: evaluation.json beside the checkpoint')


@dataclasses.dataclass
class ActOverrides:
    """Settings of acting that replace those of a checkpoint; None: as trained."""

    plan: bool | None = None
    action_scale: float | None = None
    stuck_noise: float | None = None

    @classmethod
    def parse(cls, text):
        """Parse the text of --compare_set, such as 'plan=False,action_scale=1'.

        Raises:
            ValueError: if a name or value is invalid; the message lists the names.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        values = {}
        for part in filter(None, text.split(',')):
            name, _, value = part.partition('=')
            if name not in names:
                raise ValueError(f'--compare_set {text}: must be name=value with a name of '
                                 f'{", ".join(names)}')
            try:
                values[name] = {'True': True, 'False': False}[value] if name == 'plan' else float(value)
            except (KeyError, ValueError):
                raise ValueError(f'--compare_set {text}: {name} cannot be {value!r}') from None
        check_ranges(OnlineConfig(**values))
        return cls(**values)

    def apply(self, state):
        """Return a copy of an `OnlineAgent.state_dict` with these settings in its config."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return state | {'config': state['config'] | given}


def run(config):
    """Evaluate one checkpoint, or two on the same episodes: print, write JSON, draw.

    Args:
        config: EvaluateConfig.

    Returns:
        Dict of metrics with OGBench's names, and intervals.

    Raises:
        ValueError: if a flag is invalid or a checkpoint does not fit the environment.
    """
    # flags and checkpoints
    if not config.checkpoint:
        raise ValueError('--checkpoint is required: last.pth or best_model.pth of an online run')
    check_ranges(config)

    checkpoint = load_checkpoint(config.checkpoint, 'online')
    other = load_checkpoint(config.compare, 'online') if config.compare else None
    dataset = config.dataset or checkpoint['dataset']
    output = Path(config.output or Path(config.checkpoint).with_name('evaluation.json'))
    observation_model = observation_model_of(checkpoint)
    maze = open_maze(dataset, observation_model)
    kind = 'paths' if maze else 'values'

    # the first checkpoint
    overrides = ActOverrides(config.plan, config.action_scale, config.stuck_noise)
    compared = ActOverrides.parse(config.compare_set)
    metrics, episodes, agent = measure(config, config.checkpoint, checkpoint, dataset, overrides)
    print_table(metrics, episodes)
    pictures = [output.with_name(f'{output.stem}_{kind}.png')]
    draw_evaluation(maze, agent.offline, episodes, pictures[0], title(dataset, metrics))

    # the second one, on the same episodes
    if config.compare:
        others, other_episodes, agent = measure(config, config.compare, other, dataset, compared)
        metrics['comparison'] = compare(config.compare, episodes, other_episodes,
                                        observation_model_of(other) == observation_model)
        pictures.append(output.with_name(f'{output.stem}_compared_{kind}.png'))
        draw_evaluation(maze, agent.offline, other_episodes, pictures[1], title(dataset, others))

    # files
    write_atomic(output, lambda file: file.write(json.dumps(metrics, indent=2).encode()))
    print('written: ' + ', '.join(map(str, [output, *pictures])))

    if config.video:
        for path in record(dataset, episodes, output.with_name(f'{output.stem}_videos'),
                           observation_model):
            print(f'video: {path}')
    return metrics


def title(dataset, metrics):
    """Return the title of a figure: the dataset and the success over all tasks."""
    return f'{dataset}, success {metrics["evaluation/overall_success"]:.0%}'


def print_table(metrics, episodes):
    """Print success with its interval and the mean length, for each task and overall."""
    print(f'{"":10s} success   95 % interval   mean length')
    for name, part in parts(episodes):
        rate = metrics[f'evaluation/{name}_success']
        low = metrics[f'evaluation/{name}_low']
        high = metrics[f'evaluation/{name}_high']
        length = np.mean([episode.length for episode in part])
        print(f'{spaced(name):10s} {rate:7.1%}   {low:5.1%} - {high:6.1%}   {length:8.1f}')


def measure(config, path, checkpoint, dataset, overrides):
    """Evaluate one checkpoint.

    Args:
        config: EvaluateConfig. path: of the checkpoint, for messages. checkpoint: its content.
        dataset: dataset or module:factory of the environment. overrides: ActOverrides.

    Returns:
        Dict of metrics with intervals, list of episodes, and the OnlineAgent.
    """
    # agent
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend = choose_backend(config.mamba_backend, device)[0]
    with prefix_errors(path):
        agent = OnlineAgent.from_state_dict(overrides.apply(checkpoint['agent']), device, backend)

    # environments and episodes
    n = config.episodes_per_task
    with open_envs(dataset, config.num_envs, make_env, observation_model_of(checkpoint)) as envs:
        dimensions = envs[0].observation_space.shape[0]
        if dimensions != agent.offline.observation_dim:
            raise ValueError(f'{path} is for observations of {agent.offline.observation_dim} dimensions, '
                             f'the environment has {dimensions}')
        action_dim = envs[0].action_space.shape[0]
        if action_dim != agent.action_dim:
            raise ValueError(f'{path} is for actions of {agent.action_dim} dimensions, the environment has '
                             f'{action_dim}')
        with tqdm(total=num_tasks(envs[0]) * n, desc='evaluation', unit='episode', dynamic_ncols=True,
                  mininterval=1.0) as progress:
            metrics, episodes = evaluate(agent, envs, n, config.seed, progress)

    # intervals, and the settings of this evaluation
    for name, part in parts(episodes):
        low, high = wilson_interval(sum(episode.success for episode in part), len(part))
        metrics[f'evaluation/{name}_low'] = low
        metrics[f'evaluation/{name}_high'] = high
    metrics['checkpoint'] = str(path)
    metrics['dataset'] = dataset
    metrics['episodes_per_task'] = n
    metrics['seed'] = config.seed
    metrics['plan'] = agent.config.plan
    metrics['action_scale'] = agent.config.action_scale
    metrics['stuck_noise'] = agent.config.stuck_noise
    return metrics, episodes, agent


def parts(episodes):
    """Return pairs of a name and a list of episodes: 'task1', ... and 'overall'."""
    tasks = sorted({episode.task for episode in episodes})
    by_task = [(f'task{k}', [episode for episode in episodes if episode.task == k]) for k in tasks]
    return [*by_task, ('overall', episodes)]


def spaced(name):
    """Turn 'task1' into 'task 1'."""
    return name.replace('task', 'task ')


def compare(path, episodes, other_episodes, same_observation=True):
    """Compare two checkpoints on the same episodes; print and return `paired_comparison` results.

    Args:
        path: of the second checkpoint. episodes, other_episodes: lists of Episode, in the same order.
        same_observation: whether both observe states alike, so that starts and goals can be compared.
    """
    heading = 'on episodes of the same seeds'
    results = {'checkpoint': str(path)}
    if same_observation:
        results['different_episodes'] = count_differences(episodes, other_episodes)
        heading = 'on the same episodes'
        if results['different_episodes']:
            heading = (f"NOT on the same episodes: start or goal differs in {results['different_episodes']} "
                       f'of {len(episodes)}; the reset of the environment must follow from its seed')
    print(f'\nminus {path}, {heading}')
    print(f'{"":10s} difference   95 % interval     only this   only that   p')

    for (name, ours), (_, theirs) in zip(parts(episodes), parts(other_episodes), strict=True):
        r = paired_comparison([episode.success for episode in ours],
                              [episode.success for episode in theirs])
        print(f'{spaced(name):10s} {100 * r["difference"]:+8.1f}     {100 * r["low"]:+6.1f} - '
              f'{100 * r["high"]:+6.1f}   {r["only_ours"]:9d}   {r["only_theirs"]:9d}   '
              f'{r["p_value"]:.3f}')
        results[name] = r
    return results


def count_differences(episodes, other_episodes):
    """Return how many pairs of episodes differ in their start or goal."""
    return sum(not (np.array_equal(ours.observations[0], theirs.observations[0])
                    and np.array_equal(ours.goal, theirs.goal))
               for ours, theirs in zip(episodes, other_episodes, strict=True))


def main(argv=None):
    """Evaluate with the flags of `argv`; default: those of the command line."""
    run(*parse_flags(__doc__.splitlines()[0], EvaluateConfig, argv=argv))


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # closes the environments, as Ctrl-C does
    run_main(main)
