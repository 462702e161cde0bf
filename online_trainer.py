"""Learn to act from a pretrained OPSO checkpoint: random steps -> then rounds of episodes, updates, evaluation.

    python online_trainer.py --dataset antmaze-medium-navigate-v0 --max_episodes 1000 --batch_size 8
"""

import dataclasses
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
from support.figures import Curves, Panel, plot_curves
from support.files import load_checkpoint, prefix_errors
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.metrics import MetricsLog
from support.npz import fingerprint_of_actions, load_actions
from support.runs import RunConfig, Stopped, open_run, runs_of
from trajectories import ReplayBuffer, load_recorded
from utils import as_floats, expected_time, mean_of


@dataclasses.dataclass
class TrainConfig(RunConfig):
    """environment, budget, exploration and files of the online half"""

    # the data of the offline half, unless the user insists on other
    dataset_path: str = flag('', 'npz file with the offline states; default: the very file of the offline run')
    data_dir: str = flag('', 'folder to take the dataset from by its name, instead of the file of the offline run')
    max_trajectories: int = flag(0, 'offline trajectories to imitate; 0: as many as the offline run used', least=0)
    true_actions: bool = flag(False, "imitate the actions that the data file has, instead of the labeler's: what do "
                                     'labels cost?')

    actions_path: str = flag('', 'imitate the actions in this file, such as scripts/label_with_simulator.py writes of the same data, '
                                 "instead of the labeler's")

    offline_checkpoint: str = flag('', "offline run's last.pth or best_model.pth; default: last.pth of the newest "
                                       'offline run of --dataset')
    max_episodes: int = flag(1000, 'episodes to collect', least=1)
    max_steps: int = flag(0, 'environment steps to collect, random ones included; 0: --max_episodes alone decides',
                          least=0)
    random_steps: int = flag(2000, 'first environment steps, with random actions', least=0)
    random_range: float = flag(1.5, 'random actions are uniform in so many times the action range, and clipped: '
                                    'whoever walks well uses its ends', above=0)
    random_correlation: float = flag(0.0, 'correlation of a random action with the one before it; pushes that last '
                                          'move a heavy robot more (a humanoid: 0.6)', least=0, below=1)
    random_episode_steps: int = flag(0, 'reset after so many random steps, for a robot that falls at once (a humanoid: '
                                        '50); 0: when an episode ends', least=0)
    episode_steps: int = flag(0, "the same for the agent's own episodes in training; 0: when an episode ends", least=0)
    num_envs: int = flag(8, 'episodes collected side by side in one round', least=1)
    initial_updates: int = flag(14_000, 'gradient steps after the first round', least=1)
    update_ratio: float = flag(0.2, 'gradient steps per environment step afterwards', least=0)
    epsilon_start: float = flag(0.30, 'probability of goal-biased proposals at the first episode', least=0, most=1)
    epsilon_end: float = flag(0.05, 'the same after --schedule_episodes', least=0, most=1)
    action_noise_start: float = flag(0.20, 'standard deviation of the action noise at the first episode', least=0)
    action_noise_end: float = flag(0.05, 'the same after --schedule_episodes', least=0)
    schedule_episodes: int = flag(200, 'episodes over which both schedules run, linearly', least=1)
    eval_interval: int = flag(25_000, 'environment steps between evaluations; 0 evaluates at the end only', least=0)
    eval_episodes: int = flag(4, 'episodes per task in an evaluation', least=1)
    final_eval_episodes: int = flag(20, 'episodes per task in the last evaluation', least=1)
    video: bool = flag(False, 'render one episode of each task of the last evaluation; needs EGL or OSMesa')

    @property
    def infers_actions(self):
        """Does the labeler infer what is imitated?"""
        return not (self.true_actions or self.actions_path)


LOG_INTERVAL = 100  # gradient steps of a row of updates.csv
ENOUGH_R2 = 0.85  # of held-out own steps: from there on no run of the ant gained by more (results/README.md, Labels)


def success_panel(tasks):
    """The panel of an environment with so many tasks."""
    by_task = {f'task {k}': f'evaluation/task{k}_success' for k in range(1, tasks + 1)}
    return Panel('evaluated success rate', {'mean': 'evaluation/overall_success'} | by_task, limits=(-0.03, 1.03))


PANELS = (  # after the panel of success; those of rounds are optional: random steps alone are a single round
    Panel('success of training episodes', {'mean': 'collect/success'}, optional=True, limits=(-0.03, 1.03)),
    Panel('episode reward', {'mean': 'collect/reward'}, optional=True),
    Panel('episode length', {'mean': 'collect/length'}, optional=True),
    Panel('R² of the labels of held-out own steps', {'mean': 'labeler/r2'}, optional=True),
    Panel('inverse dynamics', {'train': 'training/inverse_dynamics_error'}, log_scale=True),
    Panel('epsilon', {'mean': 'collect/epsilon'}, optional=True),
    Panel('action noise', {'mean': 'collect/action_noise'}, optional=True),
    Panel('goal-biased exploration rate', {'mean': 'collect/goal_biased_rate'}, optional=True),
    Panel('feature_decoder', {'train': 'training/feature_decoder_loss'}, log_scale=True),
    Panel('usual progress', {'train': 'training/baseline_loss'}, log_scale=True, optional=True),  # --progress_steps
    Panel('critic, value, proposer', {'critic': 'training/critic_loss', 'value': 'training/value_loss',
                                      'proposer': 'training/proposer_loss'}, log_scale=True,
          optional=True),  # --value_interval
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
        raise ValueError('--actions_path, --true_actions: actions come from one of them; leave the other out')
    if agent_config.corrective_fraction and not config.infers_actions:
        raise ValueError("--corrective_fraction: only the labeler's actions lead back; leave it or "
                         f'{"--true_actions" if config.true_actions else "--actions_path"} out')


def newest_offline_run(dataset):
    """-> last.pth of the newest offline run of `dataset`; FileNotFoundError says how to make one."""
    folder = runs_of('offline_checkpoints', dataset)
    found = sorted(folder.glob('*/last.pth'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'no offline run of {dataset} under offline_checkpoints/; run offline_trainer.py '
                                f'{name_flag(dataset)} {dataset} first, or name a file with --offline_checkpoint')
    return found[-1]


@dataclasses.dataclass
class OfflineSource:
    """Where a run comes from: its offline checkpoint, and which data that was trained on."""

    source: str  # absolute path of the offline checkpoint
    data: dict  # dataset, path, max_trajectories, fingerprint and observation_model, as the offline trainer wrote them
    agent: dict  # the offline agent's state_dict
    observation_model: ObservationModel  # through which the data were seen, and the environment is


def find_offline_source(config, saved):
    """-> OfflineSource. A resumed run (`saved` is its checkpoint) holds all of it and needs the offline file no more."""
    if saved:
        return OfflineSource(saved['source'], saved['data'], saved['agent']['offline'], observation_model_of(saved))

    source = Path(config.offline_checkpoint or newest_offline_run(config.name))
    checkpoint = load_checkpoint(source, 'offline')
    data = checkpoint['data']
    if data['dataset'] != config.name:
        raise ValueError(f"{source} was trained on {data['dataset']}, {name_flag(config.name)} is {config.name}: "
                         'they must be the same')
    return OfflineSource(str(source.resolve()), data, checkpoint['agent'], observation_model_of(checkpoint))


def load_given_actions(path, data, agent):
    """-> actions (N, A) in [-1, 1] of all rows of a `TrajectoryDataset`, from its file or one that scripts/label_with_simulator.py made for
    it. Raises ValueError where there are none, not the environment's, or not of this data."""
    path = str(expand(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file of actions')

    actions = load_actions(path, len(data))
    made_for = fingerprint_of_actions(path)
    if made_for not in (None, data.fingerprint()):
        raise ValueError(f'{path}: its actions were told for {made_for}; what is imitated is {data.fingerprint()}')
    if actions.shape[1] != agent.action_dim:
        raise ValueError(f'{path}: `actions` have {actions.shape[1]} dimensions, those of the environment '
                         f'{agent.action_dim}')
    return agent.scale_to_unit(actions).clip(-1, 1)


def train(config, agent_config):
    """Run (or resume) one online training -> path of last.pth."""
    check_flags(config, agent_config)
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend, why = choose_backend(config.mamba_backend, device)

    with open_run('online', __file__, config, agent_config) as run:
        origin = find_offline_source(config, run.saved)
        with prefix_errors(origin.source):
            offline = OfflineAgent.from_state_dict(origin.agent, device, backend)

        envs = open_envs(config.name, config.num_envs, make_env, origin.observation_model)
        if envs[0].observation_space.shape != (offline.observation_dim,):
            raise ValueError(f'{origin.source} was trained on observations of {offline.observation_dim} dimensions, '
                             f'{config.name} has {envs[0].observation_space.shape[0]}')

        sampling = offline.config.sampling()
        with run.stop.interruptible():
            data, data_source = load_recorded(origin.data, origin.source, config.dataset_path, config.data_dir,
                                              config.dataset_url, config.max_trajectories, origin.observation_model, **sampling)
        space = envs[0].action_space
        agent = OnlineAgent(offline, space.low, space.high, agent_config)
        if not config.infers_actions:
            data.actions = load_given_actions(config.actions_path or data_source.path, data, agent)
        if not run.saved:  # else it is part of what was saved
            with run.stop.interruptible():
                agent.build_map(data, config.seed)
        replay = ReplayBuffer(offline.observation_dim, agent.action_dim, **sampling)
        print_banner(run, origin, agent, data, data_source, device_line(config.device, device, why))

        training = OnlineTraining(run, config, agent, data, replay, envs, origin)
        training.loop()
        print_results(run, config, training)
    return run.folder / 'last.pth'


def print_banner(run, origin, agent, data, data_source, device):
    trained = [*agent.trained.parameters()]
    if agent.config.value_interval:
        trained += agent.values.parameters()
    print(f'offline checkpoint: {origin.source} ({agent.offline.step:,} updates)')
    print(data_source.note)
    print(device)
    print(f'{len(data.starts):,} trajectories, {len(data):,} states of {agent.offline.observation_dim} dimensions; '
          f'{agent.action_dim} actions; {sum(p.numel() for p in trained):,} trained parameters')
    if agent.state_map:
        print(f"map of the data: {agent.state_map}; {'plans' if agent.plans else 'does not plan'} on it")
    print(f'run folder: {run.folder}')


def print_results(run, config, training):
    last = run.folder / 'last.pth'
    judged = [row['labeler/r2'] for row in training.log.rows if 'labeler/r2' in row]
    if judged:
        hint = '' if judged[-1] >= ENOUGH_R2 else f'; below {ENOUGH_R2}, more --random_steps usually help'
        hidden = '' if training.agent.labeler.seen.all() else ', told without places'
        print(f'labels: R² {judged[-1]:.2f} of own steps that were held out{hidden}{hint}')
    final = next(row for row in reversed(training.log.rows) if 'evaluation/overall_success' in row)
    print(f'success over {config.final_eval_episodes} episodes of each task after {final["step"]:,.0f} environment '
          f'steps: {final["evaluation/overall_success"]:.1%}')
    print(f'curves: {run.folder / "online_training_curves.png"}; evaluation episodes: {training.picture}')
    print(f'checkpoints: {last}, {run.folder / "best_model.pth"} (highest evaluated success)')
    print(f'next: {shlex.join(["python", "evaluate.py", "--checkpoint", str(last)])}')


@dataclasses.dataclass
class Round:
    """A round in progress: its episodes are in the replay, and some of the gradient steps on them are done."""

    first_step: int  # environment steps before it
    updates_due: int  # gradient steps in all
    row: dict  # numbers of the collection, for the CSV
    infos: list = dataclasses.field(default_factory=list)  # numbers of the gradient steps done


class OnlineTraining:
    """Rounds of episodes, updates and evaluation until the budget is spent. Goes on where `run.saved` ended: between
    two rounds, or among the updates of the round in progress."""

    def __init__(self, run, config, agent, data, replay, envs, origin):
        self.run = run
        self.config = config
        self.agent = agent
        self.replay = replay
        self.envs = envs
        self.origin = origin

        self.collector = Collector(config, envs, agent)
        self.rng = np.random.default_rng([config.seed, 4])
        self.best = -1.0
        self.round = None
        if run.saved:
            self.load_state_dict(run.saved)

        last_row = self.collector.steps - bool(self.round)  # of a round in progress there is no row yet
        self.log = run.start_logging('online.csv', last_row, data.fingerprint(), offline_checkpoint=origin.source)
        self.updates_log = MetricsLog(run.folder / 'updates.csv', agent.step)
        self.maze = open_maze(config.name, origin.observation_model)
        self.picture = run.folder / ('maze_paths.png' if self.maze else 'episode_values.png')
        with run.stop.interruptible():
            self.batches = agent.open_batches(data, replay)
            if self.round:  # of which some updates are still due
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
                    with self.run.stop.interruptible():  # episodes cannot be saved half-way: a stop drops the round
                        self.collect_and_refresh()
                self.update()
                metrics = self.evaluate_if_due()
                self.finish_round(metrics)

                rounds += 1
                if rounds == 2 and not self.collector.done:  # the first round is unlike the others: random steps
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
        """Add one round of episodes to the replay, and their latents to what batches are drawn from."""
        first_step = self.collector.steps
        collected = self.collector.round(self.progress)

        dropped = 0
        for episode in collected.episodes:
            if episode.length:  # 0: a fault at its first step
                actions = self.agent.scale_to_unit(episode.actions)
                dropped += self.replay.add(episode.observations, actions)

        self.batches.refresh(dropped)
        if self.config.infers_actions:
            r2 = self.agent.fit_labeler(self.batches, self.rng)
            if r2 is not None:
                collected.numbers['labeler/r2'] = r2

        due = round(self.config.update_ratio * collected.steps)
        if not self.agent.step:
            due = self.config.initial_updates
        self.round = Round(first_step, due, collected.numbers)

    def update(self):
        """The gradient steps that the round still lacks. Raises `Stopped` between two of them."""
        missing = self.round.updates_due - len(self.round.infos)
        for _ in tqdm(range(missing), 'updates', leave=False, dynamic_ncols=True, mininterval=1.0):
            batch = self.batches.sample(self.rng)
            self.round.infos.append(as_floats(self.agent.update(batch)))
            self.run.check_finite(self.agent.step, self.round.infos[-1], batch.row_numbers())
            if self.agent.step % LOG_INTERVAL == 0:
                self.updates_log.log(self.agent.step, mean_of(self.round.infos[-LOG_INTERVAL:], 'training/'))
            self.run.stop.check()

    def evaluate_if_due(self):
        """-> metrics of an evaluation, {} where none is due: every `eval_interval` steps and at the end."""
        interval = self.config.eval_interval
        crossed = interval and self.collector.steps // interval > self.round.first_step // interval
        if not (self.collector.done or crossed):
            return {}

        with self.run.stop.interruptible():
            return self.evaluate(final=self.collector.done)

    def evaluate(self, final):
        """Run an evaluation and draw its paths -> metrics."""
        count = self.config.final_eval_episodes if final else self.config.eval_episodes
        total = num_tasks(self.envs[0]) * count
        with tqdm(total=total, desc='evaluation', leave=False, dynamic_ncols=True, mininterval=1.0) as progress:
            seed = episode_seed(self.config.seed, 5)
            metrics, episodes = evaluate(self.agent, self.envs, count, seed, progress)

        title = f'{self.config.name}, {self.collector.steps:,} steps'
        draw_evaluation(self.maze, self.agent.offline, episodes, self.picture, title)
        if self.config.video and final:
            record(self.config.name, episodes, self.run.folder / 'videos', self.origin.observation_model)
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
        """The budget is spent already: say so, and evaluate where the run was stopped before its last evaluation."""
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
        checkpoint = {'dataset': self.config.name, 'source': self.origin.source, 'data': self.origin.data,
                      'agent': self.agent.state_dict()}
        self.run.save(checkpoint | extra, name)

    def save_all(self):
        """last.pth, with all that a resumed run needs."""
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
    train(*parse_flags(__doc__.splitlines()[0], TrainConfig, OnlineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
