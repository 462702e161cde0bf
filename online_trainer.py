"""Learn to act from a pretrained OPSO checkpoint: random steps, then rounds of acting and updates.

    python online_trainer.py --dataset antmaze-medium-navigate-v0 --max_episodes 1000 --batch_size 8
"""

import contextlib
import dataclasses
import math
import shlex
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np

from environments.agreement import warn_of_steps
from environments.checks import num_tasks
from environments.custom_env import goal_dims_of, name_flag
from environments.safe_env import open_envs
from figures.pictures import draw_evaluation, maze_of
from figures.videos import record
from labeling.labeler import ENOUGH_R2, IDLE_R2
from mamba import choose_backend
from observing.observation_models import FULL_STATE, ObservationModel, observation_model_of
from offline_agent import OfflineAgent
from ogbench_utils import check_name, episode_seed, expand, make_env
from online_agent import LR, OnlineAgent, OnlineConfig
from rollouts import EPISODE_MEANS, Collector, evaluate
from support.contents import Number, check_layout
from support.devices import choose_device, device_line, set_seed
from support.figures import (
    HIGHER,
    LOWER,
    SUCCESS_LIMITS,
    Curves,
    Panel,
    Seldom,
    format_flag,
    optional_picture,
    plot_curves,
)
from support.files import load_checkpoint, prefix_errors
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.metrics import MetricsLog
from support.npz import (
    fingerprint_of_actions,
    has_array,
    load_actions,
    load_borders,
    load_trajectories,
)
from support.progress import WorkProgress, progress_bar, say
from support.runs import RunConfig, Stopped, open_run, runs_of
from tasks import STUCK_NOISE, build_map, load_map
from trajectories import TRAINING_SEED, ReplayBuffer, load_recorded
from utils import mean_of, normalize_actions


@dataclasses.dataclass
class OnlineTrainConfig(RunConfig):
    """environment, budget, exploration and files of the online half"""

    # the data of the offline run, unless a flag names other data
    dataset_path: str = flag('', 'npz file of offline states; default: the file of the offline run')
    data_dir: str = flag('', 'folder to search for the dataset; default: the file of the offline run')
    max_trajectories: int = flag(0, 'offline trajectories to imitate; 0: as many as offline', least=0)
    true_actions: bool = flag(False, 'imitation of the actions in the data file, without labeler')
    actions_path: str = flag('', 'file of actions to imitate, from label_with_simulator.py')
    offline_checkpoint: str = flag(
        '', 'checkpoint of the offline run; default: the newest last.pth of the dataset', basic=True)

    max_episodes: int = flag(1000, 'episodes to collect', least=1, basic=True)
    max_steps: int = flag(
        0, 'environment steps to collect, including random ones; 0: no limit', least=0, basic=True)
    random_steps: int = flag(0, 'environment steps with random actions at the start; 0: from robot and labels',
                             least=0, basic=True, from_data=True)
    random_range: float = flag(
        1.5, 'range of random actions, in multiples of the action range, then clipped', above=0)
    num_envs: int = flag(8, 'episodes collected in parallel in one round', least=1)
    initial_updates: int = flag(0, 'gradient steps after the first round; 0: from data and budget', least=0,
                                basic=True, from_data=True)
    update_ratio: float = flag(None, 'gradient steps per environment step in later rounds; default: from the budget',
                               type=float, least=0, basic=True, from_data=True)
    epsilon_start: float = flag(0.30, 'probability of goal-biased subgoals at the first episode',
                                least=0, most=1)
    epsilon_end: float = flag(0.05, 'probability of goal-biased subgoals after --schedule_episodes',
                              least=0, most=1)
    action_noise_start: float = flag(0.20, 'std of the action noise at the first episode', least=0)
    action_noise_end: float = flag(0.05, 'std of the action noise after --schedule_episodes', least=0)
    schedule_episodes: int = flag(0, 'episodes over which epsilon and action noise fall; 0: from the budget',
                                  least=0)
    eval_interval: int = flag(None, 'environment steps between evaluations; 0: at the end; default: from the budget',
                              type=int, least=0, basic=True)
    eval_episodes: int = flag(0, 'episodes per task in an evaluation; 0: about 20 over all tasks', least=0)
    final_eval_episodes: int = flag(20, 'episodes per task in the last evaluation', least=1, basic=True)
    format: str = format_flag()
    video: bool = flag(False, 'videos of one episode per task at the end; needs EGL or OSMesa')

    @property
    def infers_actions(self):
        """Return whether the labeler infers the actions that are imitated."""
        return not (self.true_actions or self.actions_path)


OUTSIDE_BOUNDS = 1.1  # of actions in a file, in multiples of the bounds; noise may exceed these a little
MAX_OUTSIDE = 0.5  # fraction of such actions, above which they are in other units
LOG_INTERVAL = 100  # gradient steps per row of updates.csv
MOST_NAMED = 8  # actions that the legend of labels names one by one

# random steps without --random_steps, at most half of --max_steps
RANDOM_STEPS = 1000  # at least; enough for the 8 actions of an ant
RANDOM_STEPS_PER_ACTION = 125  # of the ant
MOST_RANDOM_STEPS = 10_000
MIN_R2_GAIN = 0.02  # of R2 by twice the steps, below which more random steps are not worth it

UPDATE_RATIO = 0.2  # gradient steps per environment step in later rounds, without --max_steps

# evaluations without --eval_interval
EVALUATIONS = 8  # with --max_steps, about
EVAL_INTERVAL = 25_000  # environment steps, without it
EVAL_EPISODES = 20  # over all tasks, without --eval_episodes


PANELS = (  # after those of success and labels; optional panels need more than one round
    Panel('train loss', {'train': 'training/total_loss'}, log_scale=True, better=LOWER),
    Panel('success of training episodes', {'mean': 'collect/success'}, optional=True, limits=SUCCESS_LIMITS,
          better=HIGHER),
    Panel('episode reward', {'mean': 'collect/reward'}, optional=True, better=HIGHER),
    Panel('epsilon', {'mean': 'collect/epsilon'}, optional=True, limits=(0, None)),
    Panel('std of action noise', {'mean': 'collect/action_noise'}, optional=True, limits=(0, None)),
    Panel('goal-biased exploration rate', {'mean': 'collect/goal_biased_rate'}, optional=True,
          limits=(0, None)),
    Panel('episode length', {'mean': 'collect/length'}, optional=True, limits=(0, None)),
    Panel('error of imitated actions', {'train': 'training/inverse_dynamics_error'}, log_scale=True,
          better=LOWER),
    Panel('progress baseline', {'train': 'training/baseline_loss'}, optional=True, better=LOWER,
          reference=('constant', 1.0)),  # in standard deviations of the batch
    Panel('feature decoder', {'train': 'training/feature_decoder_loss'}, log_scale=True, better=LOWER),
    Panel('gradient norm', {'train': 'training/grad_norm'}, log_scale=True),
    Panel('environment steps per second', {'mean': 'time/steps_per_second'}, optional=True, log_scale=True,
          better=HIGHER),
)


def all_panels(tasks, actions):
    """Return the panels of a run.

    Args:
        tasks: their number. actions: number of action dimensions that are inferred; 0 without labeler.
    """
    # success, with a curve for each of several tasks
    by_task = {f'task {k}': f'evaluation/task{k}_success' for k in range(1, tasks + 1)} if tasks > 1 else {}
    success = Panel('evaluated success rate', {'mean': 'evaluation/overall_success'} | by_task,
                    limits=SUCCESS_LIMITS, better=HIGHER)
    over_updates = dataclasses.replace(success, x='gradient_steps', xlabel='gradient steps')

    # labels, by action if there is a labeler
    panels = [success, over_updates, *PANELS]
    if actions:
        named = [f'action {k}' for k in range(actions)] if actions <= MOST_NAMED else [
            'actions', *(f'_action {k}' for k in range(1, actions))]  # _: no entry in the legend
        by_action = {name: f'labeler/r2_action{k}' for k, name in enumerate(named)}
        panels.insert(2, Panel('R² of labels on held-out steps', {'mean': 'labeler/r2'} | by_action,
                               limits=(0, SUCCESS_LIMITS[1]), better=HIGHER, reference=('enough', ENOUGH_R2)))
    return panels


def without_cut_rounds(rows):
    """Return rows of online.csv without the means of rounds most of whose episodes a budget cut short.

    An episode that is cut short has not failed, and those that end before are the short ones. If all rounds are
    such, their means are all that there is.
    """
    is_whole = [row.get('collect/whole_rate', 0) >= 0.5 for row in rows]
    if not any(is_whole):
        return rows
    means = {f'collect/{name}' for name in EPISODE_MEANS}
    return [row if whole else {name: value for name, value in row.items() if name not in means}
            for row, whole in zip(rows, is_whole, strict=True)]


def check_flags(config, agent_config):
    """Raise ValueError for invalid flags, before anything is loaded."""
    # each flag alone
    check_ranges(config, agent_config)
    check_name(config.name, config.env)

    # combinations
    for name in ('max_steps', 'random_steps'):
        value = getattr(config, name)
        if 0 < value < config.num_envs:
            raise ValueError(f'--{name} {value}: must be 0 or at least --num_envs {config.num_envs}')
    for name in ('epsilon', 'action_noise'):
        start = getattr(config, f'{name}_start')
        end = getattr(config, f'{name}_end')
        if end > start:
            raise ValueError(f'--{name}_end {end}: must be at most --{name}_start {start}')
    if config.true_actions and config.actions_path:
        raise ValueError('--actions_path, --true_actions: each names the actions to imitate; '
                         'leave one out')
    if agent_config.corrective_fraction and not config.infers_actions:
        given = '--true_actions' if config.true_actions else '--actions_path'
        raise ValueError("--corrective_fraction needs the labeler's actions; leave it out, "
                         f'or {given}')


def newest_offline_run(dataset):
    """Return the path of last.pth of the newest offline run of a dataset.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = runs_of('offline_checkpoints', dataset)
    found = sorted(folder.glob('*/last.pth'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'no offline run of {dataset} under offline_checkpoints/; run '
                                f'offline_trainer.py {name_flag(dataset)} {dataset} first, or name a '
                                'file with --offline_checkpoint')
    return found[-1]


@dataclasses.dataclass
class OfflineSource:
    """The offline checkpoint of an online run, and the record of its data."""

    path: str  # absolute path of the offline checkpoint
    data: dict  # `OfflineTraining.data_record`
    agent: dict  # the offline agent's state_dict
    observation_model: ObservationModel  # of data and environment
    declares_goals: bool  # by --goal_dims of the offline run


def find_offline_source(config, saved):
    """Return the OfflineSource of a run.

    Args:
        config: OnlineTrainConfig.
        saved: checkpoint of a resumed run, which contains the offline agent; None: a new run.

    Raises:
        ValueError: if the offline checkpoint is of another dataset.
    """
    if saved:
        with prefix_errors('last.pth of the run'):
            return OfflineSource(saved['source'], saved['data'], saved['agent']['offline'],
                                 observation_model_of(saved), declares_goals=False)  # its flags are saved

    path = Path(config.offline_checkpoint or newest_offline_run(config.name))
    checkpoint = load_checkpoint(path, 'offline')
    data = checkpoint['data']
    if data.get('dataset') != config.name:
        raise ValueError(f"{path} was trained on {data.get('dataset')}, {name_flag(config.name)} is "
                         f'{config.name}: they must be the same')
    with prefix_errors(path):
        return OfflineSource(str(path.resolve()), data, checkpoint['agent'],
                             observation_model_of(checkpoint), bool(checkpoint.get('flags', {}).get('goal_dims')))


def load_given_actions(path, data, space, observation_model=FULL_STATE):
    """Load the actions (N, A), in [-1, 1], of all rows of a TrajectoryDataset from a file of --actions_path.

    The file must belong to the data. It has their fingerprint (label_with_simulator.py), their
    `observations`, or at least their `terminals`.

    Args:
        path: npz file.
        data: TrajectoryDataset of N rows.
        space: action space of the environment.
        observation_model: of the data.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no actions, or actions of another environment or of other data.
    """
    flag = '--actions_path'
    if not Path(path).is_file():
        raise FileNotFoundError(f'{flag} {path}: no such file of actions')
    way_out = f'name a file of actions of these data with {flag}, or leave it out'

    # by its fingerprint
    actions = load_actions(path, len(data), flag)
    starts, ends = load_borders(path, flag)
    made_for = fingerprint_of_actions(path)
    if made_for is not None and made_for != data.fingerprint():
        raise ValueError(f'{path}: its actions belong to {made_for}; the data to imitate are '
                         f'{data.fingerprint()}; {way_out}')

    # by its trajectories; only a file of states may have more of them, for validation
    count = len(data.ends)
    has_states = has_array(path, 'observations')
    same = np.array_equal(ends[:count], data.ends) and (has_states or len(ends) == count)
    if same and has_states:
        states = load_trajectories(path, count, flag=flag)[0]
        states = observation_model.observe_trajectories(states, starts[:count], ends[:count],
                                                        seed=TRAINING_SEED)
        same = np.array_equal(states, data.observations[:len(data)])
    if not same:
        raise ValueError(f'{path}: its trajectories are not those of the data to imitate, '
                         f'{data.fingerprint()}; {way_out}')
    return scale_actions(path, actions, space)


def scale_actions(path, actions, space):
    """Return actions (N, A) of a file in [-1, 1].

    Raises:
        ValueError: if they have other dimensions than the action space, or lie far outside its bounds.
    """
    if actions.shape[1] != space.shape[0]:
        raise ValueError(f'{path}: `actions` have {actions.shape[1]} dimensions, those of the '
                         f'environment {space.shape[0]}; name a file of actions of this environment')
    scaled = normalize_actions(actions, space.low, space.high)
    outside = np.mean(np.abs(scaled) > OUTSIDE_BOUNDS)
    if outside > MAX_OUTSIDE:
        raise ValueError(f'{path}: {outside:.0%} of its `actions` lie outside the bounds of the '
                         f'environment, {space.low} to {space.high}; save them in its units')
    return scaled.clip(-1, 1)


def train(config, agent_config):
    """Run (or resume) one online training; return the path of last.pth.

    Args:
        config: OnlineTrainConfig. agent_config: OnlineConfig.
    """
    # flags and device
    check_flags(config, agent_config)
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend, why = choose_backend(config.mamba_backend, device)

    with open_run('online', __file__, config, agent_config) as run, contextlib.ExitStack() as opened:
        # the offline agent and its environments
        source = find_offline_source(config, run.saved)
        with prefix_errors(run.last if run.saved else source.path):
            offline = OfflineAgent.from_state_dict(source.agent, device, backend)

        envs = opened.enter_context(
            open_envs(config.name, config.num_envs, make_env, source.observation_model))
        check_dimensions(envs[0], offline, source.path, config.name)

        # data, agent, rounds
        with run.stop.interruptible():
            data, data_source = load_offline_data(config, source, offline, envs[0].action_space)
            if not agent_config.stay:
                declared = source.declares_goals or goal_dims_of(envs[0])
                run.set_flags(stay='yes' if declared else 'no')
                if declared:
                    print('--stay yes: goal dimensions are declared; give --stay no if passing a goal is enough')
            if agent_config.stuck_noise is None:
                waits = agent_config.stay == 'yes' or offline.has_objects
                run.set_flags(stuck_noise=0.0 if waits else STUCK_NOISE)
            agent = make_agent(run, config, agent_config, offline, data, envs[0].action_space)
        replay = ReplayBuffer(offline.observation_dim, agent.action_dim, **offline.config.sampling())
        print_banner(run, source, agent, data, data_source, device_line(config.device, device, why))

        training = OnlineTraining(run, config, agent, data, replay, envs, source)
        training.loop()
        print_results(run, config, training)
    return run.folder / 'last.pth'


def check_dimensions(env, offline, path, name):
    """Raise ValueError unless an environment has as many dimensions as the OfflineAgent.

    Args:
        path: of the checkpoint. name: of the dataset; both for the message.
    """
    found = env.observation_space.shape
    if found != (offline.observation_dim,):
        raise ValueError(f'{path} was trained on observations of {offline.observation_dim} dimensions, '
                         f'{name} has {found[0]}')


def load_offline_data(config, source, offline, space):
    """Load the data of the offline run, and the actions that a flag names.

    Args:
        config: OnlineTrainConfig. source: OfflineSource. offline: OfflineAgent.
        space: action space of the environment.

    Returns:
        TrajectoryDataset and DataSource.
    """
    data, data_source = load_recorded(source.data, source.path, offline, config.dataset_path,
                                      config.data_dir, config.dataset_url, config.max_trajectories,
                                      source.observation_model)
    if config.true_actions:
        actions = load_actions(data_source.path, len(data))
        data.actions = scale_actions(data_source.path, actions, space)
    elif config.actions_path:
        data.actions = load_given_actions(expand(config.actions_path), data, space,
                                          data_source.observation_model)
    return data, data_source


def make_agent(run, config, agent_config, offline, data, space):
    """Return an OnlineAgent with a new map of the data, or with the saved map of a resumed run."""
    if run.saved:
        with prefix_errors(run.last):
            data_map = load_map(offline, run.saved['agent']['map'])
    else:
        data_map = build_map(offline, agent_config, data, config.seed)
    return OnlineAgent(offline, space.low, space.high, agent_config, data_map)


def print_banner(run, source, agent, data, data_source, device):
    """Print the data, the device, the sizes and the folder of the run."""
    parameters = sum(p.numel() for p in agent.nets.parameters())
    print(f'offline checkpoint: {source.path} ({agent.offline.step:,} updates)')
    print(data_source.note)
    if data_source.observation_model.note:
        print(data_source.observation_model.note)
    print(device)
    print(f'{len(data.starts):,} trajectories, {len(data):,} states of '
          f'{agent.offline.observation_dim} dimensions; {agent.action_dim} action dimensions; '
          f'{parameters:,} trained parameters')
    numbers = agent.offline.config
    print(f'steps of a transition {numbers.transition_steps}, discount {numbers.discount:g}, context '
          f'{numbers.context_length}, as offline')
    print(f"map of the data: {agent.data_map}; {'used' if agent.config.plan else 'not used'} "
          'for planning')
    print(f'run folder: {run.folder}')


def print_results(run, config, training):
    """Print the quality of the labels, the success and the files of a finished run."""
    # labels
    last = run.folder / 'last.pth'
    r2 = [row['labeler/r2'] for row in training.log.rows if 'labeler/r2' in row]
    if r2:
        print(labels_line(training.agent.labeler, r2[-1]))

    # success and files
    final = next(row for row in reversed(training.log.rows) if 'evaluation/overall_success' in row)
    print(f'success over {config.final_eval_episodes} episodes of each task after '
          f'{final["step"]:,.0f} environment steps: {final["evaluation/overall_success"]:.1%}')
    print(f'curves: {training.curves_path}; '
          f'evaluation episodes: {training.picture}')
    print(f'checkpoints: {last}, {run.folder / "best_model.pth"} (highest evaluated success)')
    print(f'next: {shlex.join(["python", "evaluate.py", "--checkpoint", str(last)])}')


def labels_line(labeler, r2):
    """Describe the quality of the labels of a Labeler, `r2` over all action dimensions, in one line.

    The hint to collect more steps ignores actions without any visible effect.
    """
    by_action = labeler.r2.cpu().numpy()
    idle = np.flatnonzero(by_action < IDLE_R2)

    values = ' '.join(f'{value:.2f}' for value in by_action)
    line = f'labels: R² {r2:.2f} on held-out steps, by action {values}'
    if labeler.masks_position:
        line += ', position masked'
    if len(idle):
        line += f"; without visible effect: action {', '.join(map(str, idle))}"
    if labeler.is_poor:
        line += f'; below {ENOUGH_R2}, more --random_steps usually help'
    return line


def first_random_steps(action_dim, most):
    """Return the number of random steps, at most `most`, for a number of action dimensions."""
    return min(max(RANDOM_STEPS, RANDOM_STEPS_PER_ACTION * action_dim), most)


@dataclasses.dataclass
class Round:
    """A round whose episodes are in the replay and whose gradient steps are in progress."""

    first_step: int  # environment steps before the round
    updates_due: int  # gradient steps of the round
    row: dict  # name -> float, metrics of the collection
    infos: list = dataclasses.field(default_factory=list)  # a dict of metrics per gradient step done


class OnlineTraining:
    """Loop of rounds of episodes, updates and evaluation until the budget is spent.

    A resumed run continues from the checkpoint `run.saved`, between two rounds or between two
    updates.

    Args:
        run: Run. config: OnlineTrainConfig. agent: OnlineAgent. data: TrajectoryDataset.
        replay: ReplayBuffer. envs: list of environments. source: OfflineSource.
    """

    def __init__(self, run, config, agent, data, replay, envs, source):
        self.run = run
        self.config = config
        self.agent = agent
        self.data = data
        self.replay = replay
        self.envs = envs
        self.source = source

        # state of the loop, part of a checkpoint
        self.collector = Collector(config, envs, agent)
        self.rng = np.random.default_rng([config.seed, 4])
        self.best = -1.0
        self.round = None
        self.labeled_steps = 0  # environment steps at the last fit of the labeler
        if run.saved:
            with prefix_errors(run.last):
                self.load_state_dict(run.saved)

        # logs and pictures
        last_row = self.collector.steps - bool(self.round)  # a round in progress has no row yet
        self.log = run.start_logging('online.csv', last_row, data.fingerprint(),
                                     offline_checkpoint=source.path)
        self.updates_log = MetricsLog(run.folder / 'updates.csv', agent.step)
        self.maze = maze_of(envs[0], source.observation_model)
        self.curves = Seldom()
        self.curves_path = run.folder / f'online_training_curves.{config.format}'
        self.picture = run.folder / f'{"maze_paths" if self.maze else "episode_values"}.{config.format}'

        # batches
        with run.stop.interruptible():
            self.batches = agent.open_batches(data, replay)
            if self.labeled_steps:  # of a resumed run
                self.batches.label_data(agent.label)

    # ------------------------------------------------------------------------------------- the loop
    def loop(self):
        """Repeat rounds: collect, label, update, save, evaluate if due, save, draw; save if stopped.

        The gradient steps are saved before the evaluation, and its numbers before pictures and videos.
        """
        if self.collector.done and not self.round:
            self.finish_without_rounds()
            return

        self.open_progress()
        try:
            while self.round or not self.collector.done:
                if not self.round:
                    # a stop during collection drops the round
                    with self.run.stop.interruptible():
                        self.collect_and_refresh()
                self.expect_work()
                self.update()
                metrics, episodes = self.evaluate_if_due()
                self.finish_round(metrics)
                self.draw(episodes)
                self.progress.update(self.unit, 0)
                self.run.stop.check()
        except Stopped:
            if self.round:
                self.save_all()
            self.draw_curves()
            raise
        finally:
            self.progress.close()

    def open_progress(self):
        """Open a bar of gradient steps and of environment steps with --max_steps, else of episodes."""
        self.unit = 'steps' if self.config.max_steps else 'episodes'
        done = self.collector.steps if self.config.max_steps else self.collector.episodes
        self.progress = WorkProgress({self.unit: done, 'updates': self.agent.step})

    def expect_work(self):
        """Correct the work that is left, in the collected round and in those to come, and with it the bar."""
        collector = self.collector
        steps = self.config.max_steps - collector.steps
        left = steps
        if not self.config.max_steps:
            left = self.config.max_episodes - collector.episodes
            steps = left * collector.steps / max(collector.episodes, 1)
        if collector.done:
            steps = left = 0
        due = self.round.updates_due - len(self.round.infos)
        self.progress.expect(**{self.unit: left}, updates=due + round(self.config.update_ratio * steps))

    def collect_and_refresh(self):
        """Collect one round of episodes, fit the labeler to all online steps, label the data, begin a Round."""
        first_step = self.collector.steps
        grows = not first_step and not self.config.random_steps
        metrics = self.collect_random_steps() if grows else self.collect_and_label()

        # gradient steps
        if not self.agent.step:
            self.choose_updates()
        steps = self.collector.steps - first_step
        due = round(self.config.update_ratio * steps) if self.agent.step else self.config.initial_updates
        self.round = Round(first_step, due, metrics)

    def choose_updates(self):
        """Set the gradient steps and the learning rate that no flag gives, by the `Training` of the task.

        With --max_steps the gradient steps are spread evenly over the environment steps, else taken in the first
        round. With --initial_updates, or without --max_steps, the learning rate is constant.
        """
        config, agent_config = self.config, self.agent.config
        training = self.agent.task.training
        decays = training.decays and config.max_steps and not config.initial_updates

        # in all
        steps = self.batches.num_steps
        passes = math.ceil(training.passes * steps / self.batches.size)
        updates = min(max(passes, training.least_updates), training.most_updates)
        reason = {passes: f'{training.passes} passes over {steps:,} steps',
                  training.least_updates: 'the fewest by default',
                  training.most_updates: 'the most by default'}[updates]

        # now, and per environment step of later rounds
        ratio = UPDATE_RATIO
        if not config.initial_updates:
            first = updates
            if config.max_steps and config.update_ratio is None:
                ratio = updates / config.max_steps
                first = max(1, round(ratio * self.collector.steps))
            say(f'{updates:,} gradient steps: {reason}; {first:,} now (--initial_updates)')
            self.run.set_flags(initial_updates=first)
        if config.update_ratio is None:
            self.run.set_flags(update_ratio=ratio)

        # the learning rate
        if agent_config.lr_decay_updates is None:
            later = max(0, config.max_steps - self.collector.steps)
            total = config.initial_updates + round(config.update_ratio * later)
            self.run.set_flags(lr_decay_updates=total if decays else 0)
        if agent_config.lr is None:
            self.run.set_flags(lr=training.lr if decays else LR)

    def collect_and_label(self, random_steps=0):
        """Collect a round of episodes, or random steps; fit the labeler if due, and label the data.

        Returns:
            Metrics of the collection.
        """
        # episodes
        is_first = not self.collector.steps
        collected = self.collector.round(self.progress.counter(self.unit), random_steps)
        dropped = 0
        for episode in collected.episodes:
            if episode.length:  # 0: a fault at its first step
                actions = self.agent.normalize_actions(episode.actions)
                dropped += self.replay.add(episode.observations, actions)

        # the first round shows whether data and environment agree
        if is_first and collected.episodes:
            warn_of_steps(self.data, self.replay, collected.episodes)

        # labels
        self.batches.refresh(dropped)
        is_due = self.collector.steps >= self.agent.task.training.refit_growth * self.labeled_steps
        if self.config.infers_actions and is_due:
            r2 = self.agent.fit_labeler(self.batches, self.rng)
            self.labeled_steps = self.collector.steps
            if r2 is not None:
                collected.metrics['labeler/r2'] = r2
                for action, value in enumerate(self.agent.labeler.r2.tolist()):
                    collected.metrics[f'labeler/r2_action{action}'] = value
        return collected.metrics

    def collect_random_steps(self):
        """Collect random steps without --random_steps: double them while labels are poor and become better.

        Returns:
            Metrics of the collection.
        """
        most = min(MOST_RANDOM_STEPS, self.config.max_steps // 2 or MOST_RANDOM_STEPS)
        metrics = self.collect_and_label(first_random_steps(self.agent.action_dim, most))
        last_r2 = -np.inf
        while not self.collector.done and 'labeler/r2' in metrics and self.agent.labeler.is_poor:
            steps = self.collector.steps
            more = min(steps, most - steps)
            r2 = metrics['labeler/r2']
            if more < self.config.num_envs or r2 < last_r2 + MIN_R2_GAIN:
                break
            say(f'labels: R² {r2:.2f} after {steps:,} random steps, below {ENOUGH_R2}: {more:,} more '
                '(--random_steps sets their number)')
            metrics = self.collect_and_label(more)
            last_r2 = r2
        self.run.set_flags(random_steps=self.collector.steps)
        return metrics

    def update(self):
        """Take the gradient steps of the round that are left.

        Raises:
            Stopped: if the run is stopped, between two gradient steps.
        """
        self.log_updates_if_due()  # of a run that ended before this row was written
        missing = self.round.updates_due - len(self.round.infos)
        self.progress.update(self.unit, 0)  # labels took the time since the last episode
        for _ in range(missing):
            batch = self.batches.sample(self.rng)
            info = self.agent.update(batch)
            self.round.infos.append(info)
            self.progress.update('updates')
            if not math.isfinite(info['total_loss'] + info['grad_norm']):
                self.run.report_nonfinite(self.agent.step, info, batch.row_numbers())
            self.log_updates_if_due()
            if self.run.stop.signal:
                raise Stopped

    def log_updates_if_due(self):
        """Log a row of updates.csv every `LOG_INTERVAL` gradient steps, once."""
        step = self.agent.step
        logged = self.updates_log.rows[-1]['step'] if self.updates_log.rows else 0
        if not self.round.infos or step % LOG_INTERVAL or step == logged:
            return
        with self.saved_on_error():
            self.updates_log.log(step, mean_of(self.round.infos[-LOG_INTERVAL:], 'training/'))

    @contextlib.contextmanager
    def saved_on_error(self):
        """Context of a row of a CSV: if it cannot be written, the gradient steps are saved first."""
        try:
            yield
        except OSError:
            self.save_all()
            raise

    def evaluate_if_due(self):
        """Evaluate every `eval_interval` environment steps and at the end.

        Returns:
            Dict of metrics and list of episodes; both empty if no evaluation is due.

        Raises:
            OSError: if the evaluation failed.
        """
        interval = self.config.eval_interval
        if interval is None:
            interval = self.config.max_steps // EVALUATIONS or EVAL_INTERVAL
        crossed = interval and self.collector.steps // interval > self.round.first_step // interval
        if not (self.collector.done or crossed):
            return {}, []

        self.save_all()
        try:
            with self.run.stop.interruptible():
                return self.evaluate(final=self.collector.done)
        except (ValueError, OSError) as error:
            raise OSError(f'the evaluation failed: {error}; all gradient steps are in '
                          f'{self.run.folder / "last.pth"}, and --resume repeats the evaluation') from error

    def evaluate(self, final):
        """Evaluate the agent; return the metrics and the episodes, more of them if `final`."""
        tasks = num_tasks(self.envs[0])
        between = self.config.eval_episodes or math.ceil(EVAL_EPISODES / tasks)
        count = self.config.final_eval_episodes if final else between
        total = tasks * count
        with progress_bar(total=total, desc='evaluation', leave=False) as progress:
            seed = episode_seed(self.config.seed, 5)
            return evaluate(self.agent, self.envs, count, seed, progress)

    def finish_round(self, metrics):
        """Log the round and save checkpoints; `metrics` are those of its evaluation or {}."""
        row = self.round.row | mean_of(self.round.infos, 'training/') | metrics
        row['gradient_steps'] = self.agent.step
        with self.saved_on_error():
            self.log.log(self.collector.steps, row)
        self.round = None

        if metrics:
            success = metrics['evaluation/overall_success']
            self.progress.set_postfix_str(f'success {success:.0%}')
            if success >= max(self.best, 0.0):
                self.best = success
                # before last.pth: after a kill in between, it is repeated
                self.save('best_model.pth', success=success, steps=self.collector.steps)
        self.save_all()

    def finish_without_rounds(self):
        """Print that the budget is spent, and evaluate if the last evaluation is missing."""
        print(f'this run is finished: {self.collector.episodes:,} episodes, '
              f'{self.collector.steps:,} environment steps; raise --max_episodes or --max_steps to '
              'continue it')
        episodes = []
        if 'evaluation/overall_success' not in (self.log.rows[-1] if self.log.rows else {}):
            metrics, episodes = self.evaluate(final=True)
            self.log.log(self.collector.steps, metrics | {'gradient_steps': self.agent.step})
            self.save_all()
        self.draw(episodes)

    # ------------------------------------------------------------------------------------- pictures
    def draw(self, episodes):
        """Draw the curves and the episodes of an evaluation, if any; record videos of the last one."""
        self.curves.draw(self.draw_curves, self.collector.done)
        if not episodes:
            return

        with self.run.stop.interruptible(), optional_picture(self.picture):
            title = f'{self.config.name}, {self.collector.steps:,} environment steps'
            draw_evaluation(self.maze, self.agent.offline, episodes, self.picture, title)
        if self.config.video and self.collector.done:
            folder = self.run.folder / 'videos'
            self.envs.close()  # a video opens an environment of its own
            with self.run.stop.interruptible(), optional_picture(folder):
                record(self.config.name, episodes, folder, self.source.observation_model)

    def draw_curves(self):
        """Draw the curves from all rows of updates.csv and online.csv."""
        actions = self.agent.action_dim if self.config.infers_actions else 0
        panels = all_panels(num_tasks(self.envs[0]), actions)
        curves = [Curves(self.updates_log.rows, 'gradient steps'),
                  Curves(without_cut_rounds(self.log.rows), 'environment steps')]
        with optional_picture(self.curves_path):
            title = f'OPSO online, {self.config.name}, seed {self.config.seed}'
            plot_curves(curves, panels, self.curves_path, title)

    # ---------------------------------------------------------------------------------------- files
    def save(self, name, **extra):
        """Write a checkpoint that `evaluate.py` can load, with the entries `extra`."""
        checkpoint = {'dataset': self.config.name, 'source': self.source.path, 'data': self.source.data,
                      'agent': self.agent.state_dict()}
        self.run.save(checkpoint | extra, name)

    def save_all(self):
        """Write last.pth with all that a resumed run needs."""
        self.save('last.pth', replay=self.replay.state_dict(), collector=self.collector.state_dict(),
                  rng=self.rng.bit_generator.state, best=self.best, labeled_steps=self.labeled_steps,
                  round=dataclasses.asdict(self.round) if self.round else None)

    def load_state_dict(self, saved):
        """Continue from a checkpoint that `save_all` wrote."""
        self.agent.load_state_dict(saved['agent'])
        self.replay.load_state_dict(saved['replay'])
        self.collector.load_state_dict(saved['collector'])
        self.rng.bit_generator.state = saved['rng']
        self.best = saved['best']
        self.labeled_steps = saved['labeled_steps']
        self.round = Round(**saved['round']) if saved['round'] else None
        if self.round:
            check_layout(vars(self.round), {'first_step': Number(int, least=0), 'updates_due': Number(int, least=0)})
            mean_of([self.round.row, *self.round.infos])  # fails unless they hold numbers


def main(argv=None):
    """Train with the flags of `argv`; default: those of the command line."""
    train(*parse_flags(__doc__, OnlineTrainConfig, OnlineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
