"""Learn to act from a pretrained OPSO checkpoint: random steps, then rounds of acting and updates.

    python online_trainer.py --dataset antmaze-medium-navigate-v0 --max_episodes 1000 --batch_size 8
"""

import dataclasses
import math
import shlex
import time
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np
from tqdm import tqdm

from environments.custom_env import name_flag
from environments.safe_env import num_tasks, open_envs
from figures.pictures import draw_evaluation, open_maze
from figures.videos import record
from mamba import choose_backend
from observing.observation_models import ObservationModel, observation_model_of
from offline_agent import OfflineAgent
from ogbench_utils import check_name, episode_seed, expand, make_env
from online_agent import OnlineAgent, OnlineConfig
from rollouts import Collector, evaluate
from support.devices import choose_device, device_line, set_seed
from support.figures import SUCCESS_LIMITS, Curves, Panel, plot_curves
from support.files import load_checkpoint, prefix_errors
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.metrics import MetricsLog
from support.npz import fingerprint_of_actions, load_actions
from support.runs import RunConfig, Stopped, open_run, runs_of
from tasks import build_map, load_map
from trajectories import ReplayBuffer, load_recorded
from utils import expected_time, mean_of, normalize_actions


@dataclasses.dataclass
class OnlineTrainConfig(RunConfig):
    """environment, budget, exploration and files of the online half"""

    # the offline run's own data, unless the user names other data
    dataset_path: str = flag('', 'npz file of offline states; default: the file of the offline run')
    data_dir: str = flag('', 'folder to search for the dataset; default: the file of the offline run')
    max_trajectories: int = flag(0, 'offline trajectories to imitate; 0: as many as offline', least=0)
    true_actions: bool = flag(False, "imitation of the data file's actions instead of the labeler's")
    actions_path: str = flag('', "file of actions to imitate, such as label_with_simulator.py's")
    offline_checkpoint: str = flag('', "checkpoint of the offline run; default: its newest last.pth", basic=True)

    max_episodes: int = flag(1000, 'episodes to collect', least=1, basic=True)
    max_steps: int = flag(0, 'environment steps to collect, random ones included; 0: --max_episodes decides', least=0,
                          basic=True)
    random_steps: int = flag(2000, 'first environment steps, with random actions', least=0, basic=True)
    random_range: float = flag(1.5, 'range of random actions, in multiples of the action range, then clipped', above=0)
    num_envs: int = flag(8, 'episodes collected side by side in one round', least=1)
    initial_updates: int = flag(14_000, 'gradient steps after the first round', least=1, basic=True)
    update_ratio: float = flag(0.2, 'gradient steps per environment step afterwards', least=0, basic=True)
    epsilon_start: float = flag(0.30, 'probability of goal-biased subgoals at the first episode', least=0, most=1)
    epsilon_end: float = flag(0.05, 'probability of goal-biased subgoals after --schedule_episodes', least=0, most=1)
    action_noise_start: float = flag(0.20, 'std of the action noise at the first episode', least=0)
    action_noise_end: float = flag(0.05, 'std of the action noise after --schedule_episodes', least=0)
    schedule_episodes: int = flag(200, 'episodes over which both schedules fall linearly', least=1)
    eval_interval: int = flag(25_000, 'environment steps between evaluations; 0: at the end only', least=0, basic=True)
    eval_episodes: int = flag(4, 'episodes per task in an evaluation', least=1)
    final_eval_episodes: int = flag(20, 'episodes per task in the last evaluation', least=1, basic=True)
    video: bool = flag(False, 'videos of one episode per task at the end; needs EGL or OSMesa')

    @property
    def infers_actions(self):
        """Whether the labeler infers the actions that are imitated."""
        return not (self.true_actions or self.actions_path)


LOG_INTERVAL = 100  # gradient steps of a row of updates.csv
ENOUGH_R2 = 0.85  # of held-out steps; above, no run of the ant improved with more steps (results/README.md)


def success_panel(tasks):
    """Return the panel of success, with a curve for each task."""
    by_task = {f'task {k}': f'evaluation/task{k}_success' for k in range(1, tasks + 1)}
    return Panel('evaluated success rate', {'mean': 'evaluation/overall_success'} | by_task, limits=SUCCESS_LIMITS)


PANELS = (  # after the panel of success; optional panels need more than one round
    Panel('success of training episodes', {'mean': 'collect/success'}, optional=True, limits=SUCCESS_LIMITS),
    Panel('episode reward', {'mean': 'collect/reward'}, optional=True),
    Panel('episode length', {'mean': 'collect/length'}, optional=True),
    Panel('R² of labels on held-out steps', {'mean': 'labeler/r2'}, optional=True),
    Panel('inverse dynamics', {'train': 'training/inverse_dynamics_error'}, log_scale=True),
    Panel('epsilon', {'mean': 'collect/epsilon'}, optional=True),
    Panel('action noise', {'mean': 'collect/action_noise'}, optional=True),
    Panel('goal-biased exploration rate', {'mean': 'collect/goal_biased_rate'}, optional=True),
    Panel('feature decoder', {'train': 'training/feature_decoder_loss'}, log_scale=True),
    Panel('progress baseline', {'train': 'training/baseline_loss'}, log_scale=True, optional=True),
    Panel('gradient norm', {'train': 'training/grad_norm'}, log_scale=True),
    Panel('environment steps per second', {'mean': 'time/steps_per_second'}, optional=True),
)


def check_flags(config, agent_config):
    """Raise ValueError for flags that cannot work, before anything is loaded."""
    check_ranges(config, agent_config)
    check_name(config.name, config.env)
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
        raise ValueError('--actions_path, --true_actions: each names the actions to imitate; leave one out')
    if agent_config.corrective_fraction and not config.infers_actions:
        given = '--true_actions' if config.true_actions else '--actions_path'
        raise ValueError(f"--corrective_fraction needs the labeler's actions; leave out it or {given}")


def newest_offline_run(dataset):
    """Return the path of last.pth of the newest offline run of a dataset.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = runs_of('offline_checkpoints', dataset)
    found = sorted(folder.glob('*/last.pth'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'no offline run of {dataset} under offline_checkpoints/; run offline_trainer.py '
                                f'{name_flag(dataset)} {dataset} first, or name a file with --offline_checkpoint')
    return found[-1]


@dataclasses.dataclass
class OfflineSource:
    """The offline checkpoint of an online run, and the data that it was trained on."""

    path: str  # absolute path of the offline checkpoint
    data: dict  # dataset, path, max_trajectories, fingerprint and observation_model, as the offline trainer wrote them
    agent: dict  # the offline agent's state_dict
    observation_model: ObservationModel  # of data and environment


def find_offline_source(config, saved):
    """Return the OfflineSource of a run. A resumed run (`saved` is its checkpoint) holds all of it
    and needs no file."""
    if saved:
        return OfflineSource(saved['source'], saved['data'], saved['agent']['offline'], observation_model_of(saved))

    path = Path(config.offline_checkpoint or newest_offline_run(config.name))
    checkpoint = load_checkpoint(path, 'offline')
    data = checkpoint['data']
    if data['dataset'] != config.name:
        raise ValueError(f"{path} was trained on {data['dataset']}, {name_flag(config.name)} is {config.name}: "
                         'they must be the same')
    return OfflineSource(str(path.resolve()), data, checkpoint['agent'], observation_model_of(checkpoint))


def load_given_actions(path, data, space):
    """Return actions (N, A) in [-1, 1] of all rows of a TrajectoryDataset, from a file.

    Args:
        path: the data's own file, or one that label_with_simulator.py made for it. space: the
            environment's action space.

    Raises:
        ValueError: if the file has no actions, or actions of another environment or of other data.
    """
    path = str(expand(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file of actions')

    actions = load_actions(path, len(data))
    made_for = fingerprint_of_actions(path)
    if made_for not in (None, data.fingerprint()):
        raise ValueError(f'{path}: its actions belong to {made_for}; the data to imitate are {data.fingerprint()}')
    if actions.shape[1] != space.shape[0]:
        raise ValueError(f'{path}: `actions` have {actions.shape[1]} dimensions, those of the environment '
                         f'{space.shape[0]}')
    return normalize_actions(actions, space.low, space.high).clip(-1, 1)


def train(config, agent_config):
    """Run (or resume) one online training; return the path of last.pth."""
    check_flags(config, agent_config)
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend, why = choose_backend(config.mamba_backend, device)

    with open_run('online', __file__, config, agent_config) as run:
        source = find_offline_source(config, run.saved)
        with prefix_errors(source.path):
            offline = OfflineAgent.from_state_dict(source.agent, device, backend)

        envs = open_envs(config.name, config.num_envs, make_env, source.observation_model)
        check_dimensions(envs[0], offline, source.path, config.name)

        with run.stop.interruptible():
            data, data_source = load_offline_data(config, source, offline, envs[0].action_space)
            agent = make_agent(run, config, agent_config, offline, data, envs[0].action_space)
        replay = ReplayBuffer(offline.observation_dim, agent.action_dim, **offline.config.sampling())
        print_banner(run, source, agent, data, data_source, device_line(config.device, device, why))

        training = OnlineTraining(run, config, agent, data, replay, envs, source)
        training.loop()
        print_results(run, config, training)
    return run.folder / 'last.pth'


def check_dimensions(env, offline, path, name):
    """Raise ValueError if an environment has other observations than those that a checkpoint was
    trained on."""
    found = env.observation_space.shape
    if found != (offline.observation_dim,):
        raise ValueError(f'{path} was trained on observations of {offline.observation_dim} dimensions, '
                         f'{name} has {found[0]}')


def load_offline_data(config, source, offline, space):
    """Load the data of the offline run, with actions if they are given; return a TrajectoryDataset
    and a DataSource."""
    data, data_source = load_recorded(source.data, source.path, config.dataset_path, config.data_dir,
                                      config.dataset_url, config.max_trajectories, source.observation_model,
                                      **offline.config.sampling())
    if not config.infers_actions:
        data.actions = load_given_actions(config.actions_path or data_source.path, data, space)
    return data, data_source


def make_agent(run, config, agent_config, offline, data, space):
    """Return an OnlineAgent with a new map of the data, or with that of the resumed run."""
    if run.saved:
        data_map = load_map(offline, run.saved['agent']['map'])
    else:
        data_map = build_map(offline, agent_config, data, config.seed)
    return OnlineAgent(offline, space.low, space.high, agent_config, data_map)


def print_banner(run, source, agent, data, data_source, device):
    """Print what the run trains on, and where it writes."""
    parameters = sum(p.numel() for p in agent.nets.parameters())
    print(f'offline checkpoint: {source.path} ({agent.offline.step:,} updates)')
    print(data_source.note)
    print(device)
    print(f'{len(data.starts):,} trajectories, {len(data):,} states of {agent.offline.observation_dim} dimensions; '
          f'{agent.action_dim} actions; {parameters:,} trained parameters')
    print(f"map of the data: {agent.data_map}; {'used' if agent.config.plan else 'not used'} for planning")
    print(f'run folder: {run.folder}')


def print_results(run, config, training):
    """Print the quality of the labels, the success, and the files of a finished run."""
    last = run.folder / 'last.pth'
    r2 = [row['labeler/r2'] for row in training.log.rows if 'labeler/r2' in row]
    if r2:
        hint = '' if r2[-1] >= ENOUGH_R2 else f'; below {ENOUGH_R2}, more --random_steps usually help'
        masked = '' if training.agent.labeler.input_mask.all() else ', position dimensions masked'
        print(f'labels: R² {r2[-1]:.2f} on held-out steps{masked}{hint}')
    final = next(row for row in reversed(training.log.rows) if 'evaluation/overall_success' in row)
    print(f'success over {config.final_eval_episodes} episodes of each task after {final["step"]:,.0f} environment '
          f'steps: {final["evaluation/overall_success"]:.1%}')
    print(f'curves: {run.folder / "online_training_curves.png"}; evaluation episodes: {training.picture}')
    print(f'checkpoints: {last}, {run.folder / "best_model.pth"} (highest evaluated success)')
    print(f'next: {shlex.join(["python", "evaluate.py", "--checkpoint", str(last)])}')


@dataclasses.dataclass
class Round:
    """A round in progress: its episodes are in the replay, and some of its gradient steps are done."""

    first_step: int  # environment steps before it
    updates_due: int  # gradient steps in all
    row: dict  # metrics of the collection, for the CSV
    infos: list = dataclasses.field(default_factory=list)  # metrics of the gradient steps done


class OnlineTraining:
    """Rounds of episodes, updates and evaluation until the budget is spent.

    A resumed run continues where `run.saved` ended: between two rounds, or among the updates of the
    round in progress.
    """

    def __init__(self, run, config, agent, data, replay, envs, source):
        self.run = run
        self.config = config
        self.agent = agent
        self.replay = replay
        self.envs = envs
        self.source = source

        self.collector = Collector(config, envs, agent)
        self.rng = np.random.default_rng([config.seed, 4])
        self.best = -1.0
        self.round = None
        if run.saved:
            self.load_state_dict(run.saved)

        last_row = self.collector.steps - bool(self.round)  # a round in progress has no row yet
        self.log = run.start_logging('online.csv', last_row, data.fingerprint(), offline_checkpoint=source.path)
        self.updates_log = MetricsLog(run.folder / 'updates.csv', agent.step)
        self.maze = open_maze(config.name, source.observation_model)
        self.picture = run.folder / ('maze_paths.png' if self.maze else 'episode_values.png')
        with run.stop.interruptible():
            self.batches = agent.open_batches(data, replay)
            if self.round:  # some of its updates are still due
                self.batches.label_data(agent.label)

    # ------------------------------------------------------------------------------------------------ the loop
    def loop(self):
        """Collect, refresh, update until none is due, evaluate if due, finish the round."""
        if self.collector.done and not self.round:
            self.finish_without_rounds()
            return

        rounds = 0
        self.open_progress()
        try:
            while self.round or not self.collector.done:
                done_before = self.progress.n
                begin = time.perf_counter()

                if not self.round:
                    with self.run.stop.interruptible():  # a stop drops the round: episodes are saved whole
                        self.collect_and_refresh()
                self.update()
                metrics = self.evaluate_if_due()
                self.finish_round(metrics)

                rounds += 1
                if rounds == 2 and not self.collector.done:  # the first round has random steps, unlike the others
                    seconds = time.perf_counter() - begin
                    self.progress.write(expected_time(done_before, self.progress.n, self.progress.total, seconds))
                self.run.stop.check()
        except Stopped:
            if self.round:
                self.save_all()
            self.draw_curves()
            raise
        finally:
            self.progress.close()

    def open_progress(self):
        options = {'dynamic_ncols': True, 'mininterval': 1.0}
        if self.config.max_steps:
            self.progress = tqdm(total=self.config.max_steps, initial=self.collector.steps, unit='step', **options)
        else:
            self.progress = tqdm(total=self.config.max_episodes, initial=self.collector.episodes, unit='episode',
                                 **options)

    def collect_and_refresh(self):
        """Collect one round of episodes, fit the labeler to all of them and label the data."""
        first_step = self.collector.steps
        collected = self.collector.round(self.progress)

        dropped = 0
        for episode in collected.episodes:
            if episode.length:  # 0: a fault at its first step
                actions = self.agent.normalize_actions(episode.actions)
                dropped += self.replay.add(episode.observations, actions)

        self.batches.refresh(dropped)
        if self.config.infers_actions:
            r2 = self.agent.fit_labeler(self.batches, self.rng)
            if r2 is not None:
                collected.metrics['labeler/r2'] = r2

        due = round(self.config.update_ratio * collected.steps)
        if not self.agent.step:
            due = self.config.initial_updates
        self.round = Round(first_step, due, collected.metrics)

    def update(self):
        """Take the gradient steps that the round still lacks. Raises `Stopped` between two of them."""
        missing = self.round.updates_due - len(self.round.infos)
        for _ in tqdm(range(missing), 'updates', leave=False, dynamic_ncols=True, mininterval=1.0):
            batch = self.batches.sample(self.rng)
            info = self.agent.update(batch)
            self.round.infos.append(info)
            if not math.isfinite(info['total_loss'] + info['grad_norm']):
                self.run.report_nonfinite(self.agent.step, info, batch.row_numbers())
            if self.agent.step % LOG_INTERVAL == 0:
                self.updates_log.log(self.agent.step, mean_of(self.round.infos[-LOG_INTERVAL:], 'training/'))
            if self.run.stop.signal:
                raise Stopped

    def evaluate_if_due(self):
        """Evaluate every `eval_interval` steps and at the end; return the metrics, or {} if no
        evaluation is due."""
        interval = self.config.eval_interval
        crossed = interval and self.collector.steps // interval > self.round.first_step // interval
        if not (self.collector.done or crossed):
            return {}

        with self.run.stop.interruptible():
            return self.evaluate(final=self.collector.done)

    def evaluate(self, final):
        """Run an evaluation, draw its paths and return the metrics."""
        count = self.config.final_eval_episodes if final else self.config.eval_episodes
        total = num_tasks(self.envs[0]) * count
        with tqdm(total=total, desc='evaluation', leave=False, dynamic_ncols=True, mininterval=1.0) as progress:
            seed = episode_seed(self.config.seed, 5)
            metrics, episodes = evaluate(self.agent, self.envs, count, seed, progress)

        title = f'{self.config.name}, {self.collector.steps:,} steps'
        draw_evaluation(self.maze, self.agent.offline, episodes, self.picture, title)
        if self.config.video and final:
            record(self.config.name, episodes, self.run.folder / 'videos', self.source.observation_model)
        return metrics

    def finish_round(self, metrics):
        """Log the round, keep the best model, save and draw."""
        row = self.round.row | mean_of(self.round.infos, 'training/') | metrics
        self.round = None
        self.log.log(self.collector.steps, row)

        if metrics:
            success = metrics['evaluation/overall_success']
            self.progress.set_postfix_str(f'success {success:.0%}')
            if success >= max(self.best, 0.0):
                self.best = success
                self.save('best_model.pth', success=success)  # first: a kill in between repeats it
        self.save_all()
        self.draw_curves()

    def finish_without_rounds(self):
        """Say that the budget is spent, and evaluate if the run was stopped before its last
        evaluation."""
        print(f'this run is finished: {self.collector.episodes:,} episodes, {self.collector.steps:,} environment '
              'steps; --max_episodes and --max_steps can be raised')
        if 'evaluation/overall_success' not in (self.log.rows[-1] if self.log.rows else {}):
            self.log.log(self.collector.steps, self.evaluate(final=True))
            self.save_all()
        self.draw_curves()

    # ----------------------------------------------------------------------------------------------- files
    def draw_curves(self):
        panels = (success_panel(num_tasks(self.envs[0])), *PANELS)
        curves = [Curves(self.updates_log.rows, 'gradient steps'), Curves(self.log.rows, 'environment steps')]
        plot_curves(curves, panels, self.run.folder / 'online_training_curves.png',
                    f'OPSO online, {self.config.name}, seed {self.config.seed}')

    def save(self, name, **extra):
        checkpoint = {'dataset': self.config.name, 'source': self.source.path, 'data': self.source.data,
                      'agent': self.agent.state_dict()}
        self.run.save(checkpoint | extra, name)

    def save_all(self):
        """Write last.pth, with all that a resumed run needs."""
        self.save('last.pth', replay=self.replay.state_dict(), collector=self.collector.state_dict(),
                  rng=self.rng.bit_generator.state, best=self.best,
                  round=dataclasses.asdict(self.round) if self.round else None)

    def load_state_dict(self, saved):
        self.agent.load_state_dict(saved['agent'])
        self.replay.load_state_dict(saved['replay'])
        self.collector.load_state_dict(saved['collector'])
        self.rng.bit_generator.state = saved['rng']
        self.best = saved['best']
        self.round = Round(**saved['round']) if saved['round'] else None


def main(argv=None):
    train(*parse_flags(__doc__.splitlines()[0], OnlineTrainConfig, OnlineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
