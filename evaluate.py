"""Evaluate an online checkpoint by OGBench's protocol: every task, success at the last step.

    python evaluate.py --checkpoint A/last.pth --episodes_per_task 50
    python evaluate.py --checkpoint A/last.pth --compare B/last.pth      paired, on the same episodes
    python evaluate.py --checkpoint A/last.pth --compare A/last.pth --compare_set plan=False
    python evaluate.py --checkpoint A/last.pth --stuck_noise 1           noise while the robot is stuck
    python evaluate.py --checkpoint A/last.pth --video                   one video per task

The metrics are in evaluation_50_episodes_seed0.json (50 episodes of each task, seed 0) beside the checkpoint, and as
one row in a CSV file of that name. A former evaluation of that name is kept: ….json becomes …-1.json, -2 and so on.
"""

import dataclasses
import json
import signal
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np

from environments.checks import num_tasks
from environments.safe_env import open_envs
from figures.pictures import draw_evaluation, open_maze
from figures.videos import record
from mamba import choose_backend
from observing.observation_models import observation_model_of
from ogbench_utils import make_env
from online_agent import OnlineAgent, OnlineConfig
from rollouts import evaluate
from support.contents import has_type
from support.devices import choose_device, set_seed
from support.figures import FORMATS, format_flag, optional_picture
from support.files import check_writable, load_checkpoint, prefix_errors, write_atomic
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.progress import progress_bar
from support.stats import paired_comparison, signed, wilson_interval


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
    format: str = format_flag()
    output: str = flag('', 'JSON file for the metrics; default: beside the checkpoint, named by episodes and seed')


# beside the JSON
PICTURES = ('paths', 'values', 'compared_paths', 'compared_values')
RESULTS = ('.csv', *(f'_{name}.{format}' for name in PICTURES for format in FORMATS), '_videos')


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
    """Evaluate one checkpoint, or two on the same episodes: write JSON, print, draw.

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
    output = Output(output_path(config))
    with prefix_errors(config.checkpoint):
        observation_model = observation_model_of(checkpoint)
    maze = open_maze(dataset, observation_model)

    # the first checkpoint
    overrides = ActOverrides(config.plan, config.action_scale, config.stuck_noise)
    compared = ActOverrides.parse(config.compare_set)
    metrics, episodes, agent = measure(config, config.checkpoint, checkpoint, dataset, overrides)
    output.write(metrics)
    print_table(metrics, episodes)
    drawn = {'': (agent.offline, episodes, metrics)}

    # the second one, on the same episodes
    if config.compare:
        others, other_episodes, agent = measure(config, config.compare, other, dataset, compared)
        metrics['comparison'] = compare(config.compare, episodes, other_episodes,
                                        observation_model_of(other) == observation_model)
        output.write(metrics)
        print_comparison(metrics['comparison'], len(episodes))
        drawn['compared_'] = agent.offline, other_episodes, others
    print(f'written: {output.path}')

    # pictures
    for prefix, (offline, some, their_metrics) in drawn.items():
        path = output.beside(f'_{prefix}{"paths" if maze else "values"}.{config.format}')
        with optional_picture(path):
            draw_evaluation(maze, offline, some, path, title(dataset, their_metrics))
            print(f'picture: {path}')
    if config.video:
        folder = output.beside('_videos')
        with optional_picture(folder):
            for path in record(dataset, episodes, folder, observation_model):
                print(f'video: {path}')
    return metrics


def output_path(config):
    """Return the path of the JSON file of an EvaluateConfig.

    Raises:
        ValueError: --output is the name of the CSV file that is written beside it.
    """
    if Path(config.output).suffix == '.csv':
        raise ValueError(f'--output {config.output}: names the JSON file, beside which a .csv is written; end it '
                         'in .json')
    name = f'evaluation_{config.episodes_per_task}_episodes_seed{config.seed}.json'
    return Path(config.output or Path(config.checkpoint).with_name(name))


class Output:
    """The JSON file of the metrics, a CSV file with one row of them, and the names of pictures and videos.

    A former evaluation is kept: <name>.json becomes <name>-1.json, or the first free number, and so do the files
    beside it.

    Raises:
        OSError: if the file cannot be written; found before any episode.
    """

    def __init__(self, path):
        check_writable(path)
        self.path = path
        self.is_own = False  # whether the file is of this evaluation

    def beside(self, name):
        """Return the path of one of `RESULTS`."""
        return self.path.with_name(f'{self.path.stem}{name}')

    def write(self, metrics):
        """Write the metrics, unless the file has all of them, and their numbers as a row of the CSV file.

        Raises:
            OSError: if the file cannot be written; the metrics are printed instead.
        """
        text = json.dumps(metrics, indent=2)
        kept = None
        try:
            if not self.is_own and self.path.exists():
                if self.has(metrics):
                    self.write_row(metrics)
                    return
                kept = self.keep_former()
            write_atomic(self.path, lambda file: file.write(text.encode()))
            self.is_own = True
            self.write_row(metrics)
        except OSError as error:
            print(text)
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise OSError(f'{self.path} cannot be written ({cause.strerror or cause}); the metrics are '
                          'printed above, --output names another file') from error
        if kept:
            print(f'the former evaluation is kept: {kept}')

    def write_row(self, metrics):
        """Write the numbers among the metrics as the only row of the CSV file."""
        row = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        text = f"{','.join(row)}\n{','.join(map(repr, row.values()))}\n"
        write_atomic(self.beside('.csv'), lambda file: file.write(text.encode()))

    def has(self, metrics):
        """Return whether the file holds these metrics."""
        try:
            former = json.loads(self.path.read_bytes())
        except ValueError:
            return False
        if not isinstance(former, dict):
            return False
        return all(former.get(name) == value for name, value in metrics.items())

    def keep_former(self):
        """Rename the files of a former evaluation and return the path of its metrics."""
        number = 1
        while (kept := self.path.with_stem(f'{self.path.stem}-{number}')).exists():
            number += 1
        for name in RESULTS:
            if self.beside(name).exists():
                self.beside(name).replace(kept.with_name(f'{kept.stem}{name}'))
        return self.path.replace(kept)


def title(dataset, metrics):
    """Return the title of a figure: the dataset and the success over all tasks."""
    return f'{dataset}, success {metrics["evaluation/overall_success"]:.0%}'


def print_table(metrics, episodes):
    """Print success with its interval, the share that reached the goal at some step, and the mean length.

    There is a line for each task and for all.
    """
    print(f'{"":10s} success   95 % interval   at some step   mean length')
    for name, part in parts(episodes):
        rate = metrics[f'evaluation/{name}_success']
        low = metrics[f'evaluation/{name}_low']
        high = metrics[f'evaluation/{name}_high']
        length = np.mean([episode.length for episode in part])
        reached = metrics[f'evaluation/{name}_reached']
        print(f'{spaced(name):10s} {rate:7.1%}   {low:5.1%} - {high:6.1%}   {reached:12.1%}   {length:11.1f}')


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
    state = overrides.apply(checkpoint['agent']) | {'optimizer': None}  # which acting does not need
    with prefix_errors(path):
        agent = OnlineAgent.from_state_dict(state, device, backend)
        observation_model = observation_model_of(checkpoint)
        steps = checkpoint.get('collector', checkpoint).get('steps', 0)  # of the environment, in training
        if not has_type(steps, int):
            raise ValueError(f'its number of environment steps is {steps}')

    # environments and episodes
    n = config.episodes_per_task
    with open_envs(dataset, config.num_envs, make_env, observation_model) as envs:
        dimensions = envs[0].observation_space.shape[0]
        if dimensions != agent.offline.observation_dim:
            raise ValueError(f'{path} is for observations of {agent.offline.observation_dim} dimensions, '
                             f'the environment has {dimensions}')
        action_dim = envs[0].action_space.shape[0]
        if action_dim != agent.action_dim:
            raise ValueError(f'{path} is for actions of {agent.action_dim} dimensions, the environment has '
                             f'{action_dim}')
        total = num_tasks(envs[0]) * n
        with progress_bar(total=total, desc='evaluation', unit='episode') as progress:
            metrics, episodes = evaluate(agent, envs, n, config.seed, progress)

    # intervals, and the settings of this evaluation
    for name, part in parts(episodes):
        low, high = wilson_interval(sum(episode.success for episode in part), len(part))
        metrics[f'evaluation/{name}_low'] = low
        metrics[f'evaluation/{name}_high'] = high
        metrics[f'evaluation/{name}_reached'] = float(np.mean([episode.reached for episode in part]))
    metrics['checkpoint'] = str(path)
    metrics['step'] = steps
    metrics['dataset'] = dataset
    metrics['episodes_per_task'] = n
    metrics['seed'] = config.seed
    metrics['plan'] = agent.config.plan
    metrics['action_scale'] = agent.config.action_scale
    metrics['stuck_noise'] = agent.config.stuck_noise or 0.0
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
    """Compare two checkpoints on the same episodes.

    Args:
        path: of the second checkpoint. episodes, other_episodes: lists of Episode, in the same order.
        same_observation: whether both observe states alike, so that starts and goals can be compared.

    Returns:
        Dict of the path, of the number of pairs with different starts or goals, if it can be counted,
        and of a `paired_comparison` for each task and overall.
    """
    results = {'checkpoint': str(path)}
    if same_observation:
        results['different_episodes'] = count_differences(episodes, other_episodes)
    for (name, ours), (_, theirs) in zip(parts(episodes), parts(other_episodes), strict=True):
        results[name] = paired_comparison([episode.success for episode in ours],
                                          [episode.success for episode in theirs])
    return results


def count_differences(episodes, other_episodes):
    """Return how many pairs of episodes differ in their start or goal."""
    return sum(not (np.array_equal(ours.observations[0], theirs.observations[0])
                    and np.array_equal(ours.goal, theirs.goal))
               for ours, theirs in zip(episodes, other_episodes, strict=True))


def print_comparison(comparison, count):
    """Print the results of `compare` of `count` pairs, a line for each task and overall."""
    # what was compared
    different = comparison.get('different_episodes')
    if different is None:
        pairs = 'on episodes of the same seeds'
    elif different:
        pairs = (f'NOT on the same episodes: start or goal differs in {different} of {count}; the reset of '
                 'the environment must follow from its seed')
    else:
        pairs = 'on the same episodes'
    print(f'\nminus {comparison["checkpoint"]}, {pairs}')

    # differences
    print(f'{"":10s} difference   95 % interval     only this   only that   p')
    for name, r in comparison.items():
        if not isinstance(r, dict):
            continue
        difference, low, high = (signed(100 * r[key], 1) for key in ('difference', 'low', 'high'))
        print(f'{spaced(name):10s} {difference:>8s}     {low:>6s} - {high:>6s}   {r["only_ours"]:9d}   '
              f'{r["only_theirs"]:9d}   {r["p_value"]:.3f}')


def main(argv=None):
    """Evaluate with the flags of `argv`; default: those of the command line."""
    run(*parse_flags(__doc__, EvaluateConfig, argv=argv))


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # closes the environments, as Ctrl-C does
    run_main(main)
