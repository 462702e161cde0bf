"""Pretrain OPSO offline on trajectories of states: load, update, validate, save, draw.

    python offline_trainer.py --dataset antmaze-medium-navigate-v0
"""

import dataclasses
import math
import shlex
import sys
import time

import support.threads  # noqa: F401  before torch

import numpy as np
import torch

from environments.agreement import warn_of_states
from environments.checks import closing, num_tasks
from environments.custom_env import goal_dims_of, name_flag
from figures.pictures import TrainingPictures
from mamba import choose_backend
from observing.observation_models import ObservationModel, parse_setting
from offline_agent import OfflineAgent, OfflineConfig
from ogbench_utils import check_name, check_positions, make_env
from planning.goal_weights import find_goal_weights
from support.devices import choose_device, device_line, set_seed
from support.figures import HIGHER, LOWER, Curves, Panel, Seldom, format_flag, optional_picture, plot_curves
from support.files import prefix_errors
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.progress import progress_bar
from support.runs import RunConfig, Stopped, open_run
from trajectories import load_dataset, slowness_summary
from utils import mean_of

VAL_BATCHES = 8  # batches of a validation, the same ones every time

# without --log_interval and --val_interval
ROWS = 100  # of train.csv, at most
MOST_LOG_INTERVAL = 100  # updates; a checkpoint holds the metrics of those without a row
VALIDATIONS = 10
LEAST_VAL_INTERVAL = 30  # updates; a validation takes as long as about five of them
MOST_VAL_INTERVAL = 500  # a kill costs as many updates


@dataclasses.dataclass
class OfflineTrainConfig(RunConfig):
    """data, budget and files of offline pretraining"""

    batch_size: int = flag(16, 'windows per update', least=1, basic=True)
    num_updates: int = flag(1000, 'gradient steps', least=1, basic=True)
    num_epochs: int = flag(
        0, 'passes over the training windows instead of --num_updates; 0 disables it', least=0,
        basic=True)
    log_interval: int = flag(0, 'updates between rows of train.csv; 0: from --num_updates', least=0,
                             from_data=True)
    val_interval: int = flag(
        0, 'updates between validations, checkpoints and redrawn curves; 0: from --num_updates', least=0,
        basic=True, from_data=True)
    observe: str = flag(
        'full', 'observation model: full, positions, torso, dropped:P, noise:SIGMA, units:SEED, rotated:SEED, '
        'lifted:SEED or markers',
        basic=True)
    goal_dims: str = flag(
        '', "dimensions that goals are about, such as 0,1; default: the environment's or inferred",
        basic=True)
    format: str = format_flag()
    maze_figures: bool = flag(True, 'figures of V, proposals and latents at validations')


PANELS = (  # an objective of weight 0 has no panel; the proposer always has one
    *(Panel(title, {'train': f'training/{name}', 'validation': f'validation/{name}'}, better=better,
            log_scale=name.endswith('loss'), limits=(0, None) if better == HIGHER else (None, None),
            optional=name != 'proposer_loss')
      for title, name, better in (  # losses whose targets move may rise in a healthy run
          ('total loss', 'total_loss', LOWER),
          ('next state', 'state_loss', LOWER),
          ('InfoNCE', 'infonce_loss', LOWER),
          ('InfoNCE accuracy', 'infonce_accuracy', HIGHER),
          ('alignment', 'alignment_loss', LOWER),
          ('reward/done', 'reward_loss', LOWER),
          ('value V (its target moves)', 'value_loss', ''),
          ('critic Q (its target moves)', 'critic_loss', ''),
          ('proposer (its target moves)', 'proposer_loss', ''),
      )),
    Panel('V(z, z_g)', {'mean': 'training/v_mean', 'min': 'training/v_min', 'max': 'training/v_max'},
          optional=True),
    Panel('gradient norm', {'train': 'training/grad_norm'}, log_scale=True),
    Panel('updates per second', {'train': 'time/updates_per_second'}, better=HIGHER),
)


def panels_of(config, agent_config, positions):
    """Return `PANELS` with what a prediction by chance would give.

    Args:
        config: OfflineTrainConfig. agent_config: OfflineConfig. positions: transitions of each window.
    """
    # the latent k steps later among those of other windows
    candidates = 1 + positions * (config.batch_size - 1)
    # the entropy of "z is at z_g" for its share of the goals
    share = agent_config.current_goals
    entropy = -sum(p * math.log(p) for p in (share, 1 - share) if p)

    chance = {
        'InfoNCE': ('chance', math.log(candidates)),
        'InfoNCE accuracy': ('chance', 1 / candidates),
        'alignment': ('chance', 1.0),
        'reward/done': ('chance', entropy),
        'next state': ('mean of the data', 1.0),  # of normalised states
        'gradient norm': ('clipped above', agent_config.grad_clip),
    }
    return [dataclasses.replace(panel, reference=chance.get(panel.title)) for panel in PANELS]


def check_flags(config, agent_config):
    """Raise ValueError for invalid flags, before anything is loaded."""
    check_ranges(config, agent_config)
    agent_config.check()
    check_name(config.name, config.env)
    parse_setting(config.observe)
    parse_goal_dims(config.goal_dims)
    if config.env and not config.dataset_path:
        raise ValueError(f'--env {config.env} needs its states: --dataset_path FILE.npz with '
                         '`observations` and `terminals`')


def train(config, agent_config):
    """Run (or resume) one offline training; return the path of last.pth.

    Args:
        config: OfflineTrainConfig. agent_config: OfflineConfig.
    """
    # flags and device
    check_flags(config, agent_config)
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend, why = choose_backend(config.mamba_backend, device)

    # data, agent, updates
    with open_run('offline', __file__, config, agent_config) as run:
        with run.stop.interruptible():
            data, val_data, source, goal_dims = load_data(config, agent_config)
        run.set_flags(**data.numbers())

        agent = OfflineAgent(data.observations.shape[1], agent_config, device, backend)
        summary = set_statistics(agent, data, source.observation_model, goal_dims)

        updates_per_epoch = -(-data.num_windows // config.batch_size)
        num_updates = update_budget(config, data)
        source.reasons.extend(choose_intervals(run, config, num_updates))
        print_banner(run, config, agent, data, source, device_line(config.device, device, why),
                     num_updates, updates_per_epoch)
        print(summary)

        training = OfflineTraining(run, config, agent, data, val_data, source, num_updates,
                                   updates_per_epoch)
        training.loop()
        print_results(run, config)
    return run.folder / 'last.pth'


def parse_goal_dims(text):
    """Parse --goal_dims: '0,1' -> [0, 1], '' -> [].

    Raises:
        ValueError: it is no list of dimensions.
    """
    parts = [part.strip() for part in text.split(',')] if text else []
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f'--goal_dims {text}: must be dimensions of a state, such as 0,1')
    return [int(part) for part in parts]


def declared_dims(text, env):
    """Return the dimensions of --goal_dims, or else those that the environment declares, a list of int.

    Raises:
        ValueError: they are no dimensions of its states.
    """
    dims = parse_goal_dims(text)
    size = env.observation_space.shape[0]
    if bad := [dimension for dimension in dims if dimension >= size]:
        raise ValueError(f'--goal_dims {text}: there is no dimension {bad[0]}; states have the dimensions 0 '
                         f'to {size - 1}')
    return dims or goal_dims_of(env)


def set_statistics(agent, data, observation_model, goal_dims=()):
    """Store the statistics, goal weights and goal directions of the data in an OfflineAgent.

    Goal weights are those of objects if the data have any, else the slowness of places.

    Args:
        data: TrajectoryDataset. observation_model: ObservationModel of the data.
        goal_dims: dimensions of a raw state that goals are about. They have weight 1, or those of them that are
            objects have the weights of `find_objects`.

    Returns:
        Lines on the largest goal weights and on what has none, for the banner.

    Raises:
        ValueError: a goal dimension is not observed.
    """
    # declared dimensions
    declared = observation_model.columns(goal_dims) if goal_dims else []

    # weights by objects, if goals can be about them, or by places
    places, has_objects = find_goal_weights(data, declared)
    weights = places.weights
    agent.set_statistics(*data.statistics(), weights, has_objects, bool(observation_model.drop_rate),
                         None if has_objects else places.directions)

    # the lines
    if agent.has_objects:
        dims = ', '.join(f'{i}: {weights[i]:.2g}' for i in np.flatnonzero(weights))
        return f'dimensions of objects that rest until they are moved (--slow_goals): {dims}'
    if not agent.config.slow_goals:
        return 'goal features: all dimensions (--no-slow_goals)'
    line, warning = slowness_summary(weights)
    if warning and not declared and places.are_dimensions:
        print(warning, file=sys.stderr)
    if not places.are_dimensions:
        line = line.replace('slow dimensions', 'slow directions of the state, since no dimensions span them')
    if declared:
        line = f"{line}; declared: {', '.join(map(str, declared))}"
    return '\n'.join([line, *places.excluded])


def load_data(config, agent_config):
    """Return the training and validation TrajectoryDataset, the DataSource and the declared goal dimensions.

    Raises:
        ValueError: the data cannot be trained on, or are not of the environment.
    """
    with closing(make_env(config.name)) as env:
        observation_model = ObservationModel.from_setting(config.observe, env)
        data, val_data, source = load_dataset(
            config.name, config.dataset_path, config.data_dir, config.dataset_url,
            config.max_trajectories, batch_size=config.batch_size, observation_model=observation_model,
            num_dimensions=env.observation_space.shape[0], **agent_config.sampling())
        if not source.observation_model:
            check_positions(config.name, env, source.path, data.observations)
        goal_dims = declared_dims(config.goal_dims, env)
        warn_of_states(data, source.observation_model.wrap(env), num_tasks(env))
    return data, val_data, source, goal_dims


def update_budget(config, data):
    """Return the number of gradient steps of the whole run."""
    if config.num_epochs:
        return config.num_epochs * -(-data.num_windows // config.batch_size)
    return config.num_updates


def choose_intervals(run, config, num_updates):
    """Set --log_interval and --val_interval if they are not given; return a line with the reason of each."""
    wanted = {
        'log_interval': min(math.ceil(num_updates / ROWS), MOST_LOG_INTERVAL),
        'val_interval': min(max(math.ceil(num_updates / VALIDATIONS), LEAST_VAL_INTERVAL), MOST_VAL_INTERVAL),
    }
    chosen = {name: value for name, value in wanted.items() if not getattr(config, name)}
    run.set_flags(**chosen)
    return [f'--{name} {value}: from {num_updates:,} updates' for name, value in chosen.items()]


def print_banner(run, config, agent, data, source, device, num_updates, updates_per_epoch):
    """Print the data, the device, the sizes and the folder of the run."""
    parameters = sum(p.numel() for p in agent.nets.parameters())
    print(source.note)
    if source.observation_model.note:
        print(source.observation_model.note)
    if config.observe != 'full':
        print(f'--observe {config.observe}: {agent.observation_dim} observed dimensions')
    print(device)
    print(f'{len(data.starts):,} trajectories, {len(data):,} states of {agent.observation_dim} '
          f'dimensions, {data.num_windows:,} windows of {data.context_length}')
    for reason in source.reasons:
        print(reason)
    print(f'{parameters:,} parameters; {num_updates:,} updates, {updates_per_epoch:,} per epoch')
    print(f'run folder: {run.folder}')


def print_results(run, config):
    """Print the files of a finished run and the next command."""
    last = run.folder / 'last.pth'
    pictures = '; figures of the agent: the other pictures beside it' if config.maze_figures else ''
    command = ['python', 'online_trainer.py', name_flag(config.name), config.name,
               '--offline_checkpoint', str(last)]
    print(f'curves: {run.folder}/training_curves.{config.format}{pictures}')
    print(f'checkpoints: {last} (used online), {run.folder / "best_model.pth"} '
          '(lowest validation loss)')
    print(f'next: {shlex.join(command)}')


class OfflineTraining:
    """Loop of updates, validations and checkpoints until the budget is spent.

    A resumed run continues from the checkpoint `run.saved`.

    Args:
        run: Run. config: OfflineTrainConfig. agent: OfflineAgent. source: DataSource.
        data, val_data: training and validation TrajectoryDataset.
        num_updates: gradient steps of the whole run. updates_per_epoch: int.
    """

    def __init__(self, run, config, agent, data, val_data, source, num_updates, updates_per_epoch):
        self.run = run
        self.config = config
        self.agent = agent
        self.data = data
        self.val_data = val_data
        self.num_updates = num_updates
        self.updates_per_epoch = updates_per_epoch

        # state of the loop, part of a checkpoint
        self.rng = np.random.default_rng(config.seed)
        self.best = float('inf')
        self.infos = []  # of the updates since the last row of train.csv
        if run.saved:
            with prefix_errors(run.last):
                self.load_state_dict(run.saved)

        # with this record the online half finds the same data
        self.data_record = {
            'dataset': config.name,
            'path': source.path,
            'max_trajectories': config.max_trajectories,
            'fingerprint': data.fingerprint(),
            'observation_model': dataclasses.asdict(source.observation_model),
        }

        # log and pictures
        fingerprint = f'{data.fingerprint()}; validation {val_data.fingerprint()}'
        last_row = agent.step - bool(self.infos)  # updates without a row: a row of this step is due again
        self.log = run.start_logging('train.csv', last_row, fingerprint)
        self.curves = Seldom()
        self.pictures = None
        if config.maze_figures:
            self.pictures = TrainingPictures(config.name, data, run.folder, source.observation_model,
                                             config.format)

    def loop(self):
        """Update, log and validate until the budget is spent; save if the run is stopped."""
        if self.agent.step >= self.num_updates and not self.infos:
            print(f'this run is finished: {self.agent.step:,} of {self.num_updates:,} updates are '
                  'done; raise --num_updates to continue it')
            self.draw_curves()

        self.progress = progress_bar(total=self.num_updates, initial=self.agent.step, unit='update')
        self.start_clock()
        try:
            self.log_row_if_due()  # of a run that ended in its validation
            while self.agent.step < self.num_updates:
                self.update()
                self.log_row_if_due()
                if self.run.stop.signal:
                    raise Stopped
        except Stopped:
            self.save()
            self.draw_curves()
            raise
        finally:
            self.progress.close()

    def update(self):
        """Take one gradient step and keep its metrics."""
        batch = self.data.sample(self.config.batch_size, self.rng)
        info = self.agent.update(batch.to(self.agent.device))
        self.infos.append(info)
        if not math.isfinite(info['total_loss'] + info['grad_norm']):
            self.run.report_nonfinite(self.agent.step, info, batch.row_numbers())
        self.progress.update()

    def log_row_if_due(self):
        """Log a row of train.csv every `log_interval` updates; also validate, save and draw at validations.

        The updates are saved before anything that may fail; a resumed run then continues with the row.
        """
        step = self.agent.step
        validating = step % self.config.val_interval == 0 or step == self.num_updates
        if not self.infos or not (validating or step % self.config.log_interval == 0):
            return

        # means over the updates since the last row
        speed = (step - self.clock_step) / (time.perf_counter() - self.clock)
        row = mean_of(self.infos, 'training/')
        row['time/updates_per_second'] = speed
        row['epoch'] = step / self.updates_per_epoch

        if validating:
            self.save()
            metrics = validate(self.agent, self.val_data, self.config.batch_size)
            row |= {f'validation/{name}': value for name, value in metrics.items()}
            self.progress.set_postfix_str(f"loss {row['training/total_loss']:.3f}, "
                                          f"validation {metrics['total_loss']:.3f}")
        try:
            self.log.log(step, row)
        except OSError:
            self.save()
            raise
        self.infos = []

        if validating:
            if metrics['total_loss'] <= self.best:
                self.best = metrics['total_loss']
                self.save('best_model.pth')  # before last.pth: after a kill in between, it is repeated
            self.save()
            self.curves.draw(self.draw_curves, step == self.num_updates)
            if self.pictures:
                with optional_picture(f'a picture in {self.run.folder}'):
                    self.pictures.draw(self.agent, f'{self.config.name}, {step:,} updates',
                                       step == self.num_updates)
        self.start_clock()

    def start_clock(self):
        """Start the clock of updates per second, which excludes validations and figures."""
        self.clock_step = self.agent.step
        self.clock = time.perf_counter()

    def draw_curves(self):
        """Draw the curves from all rows of train.csv."""
        path = self.run.folder / f'training_curves.{self.config.format}'
        with optional_picture(path):
            panels = panels_of(self.config, self.agent.config, self.data.positions_per_window)
            plot_curves([Curves(self.log.rows, 'gradient steps')], panels, path,
                        f'OPSO offline, {self.config.name}, seed {self.config.seed}')

    def save(self, name='last.pth'):
        """Write a checkpoint with all that a resumed run needs."""
        self.run.save({'data': self.data_record, 'agent': self.agent.state_dict(),
                       'rng': self.rng.bit_generator.state, 'best': self.best, 'infos': self.infos},
                      name)

    def load_state_dict(self, saved):
        """Continue from a checkpoint that `save` wrote."""
        self.agent.load_state_dict(saved['agent'])
        self.rng.bit_generator.state = saved['rng']
        self.best = saved['best']
        self.infos = saved['infos']
        mean_of(self.infos)  # fails unless they hold numbers


def validate(agent, dataset, batch_size):
    """Return the mean metrics of `total_loss` over the same `VAL_BATCHES` batches at each call."""
    rng = np.random.default_rng(12345)
    with torch.no_grad():
        infos = [agent.total_loss(dataset.sample(batch_size, rng).to(agent.device))[1]
                 for _ in range(VAL_BATCHES)]
    return mean_of(infos)


def main(argv=None):
    """Train with the flags of `argv`; default: those of the command line."""
    train(*parse_flags(__doc__, OfflineTrainConfig, OfflineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
