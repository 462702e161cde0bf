"""Learn to act from a pretrained OPSO checkpoint: random steps -> then rounds of episodes, updates, evaluation.

    python online_trainer.py --dataset antmaze-medium-navigate-v0 --max_episodes 1000 --batch_size 8
"""

import dataclasses
import time
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np
from tqdm import tqdm

from latents import LatentStore
from mamba import choose_backend
from maze_figures import Maze, draw_paths
from offline_agent import OfflineAgent
from ogbench_utils import episode_seed, make_env, parse_name
from online_agent import OnlineAgent, OnlineConfig
from rollouts import Collector, evaluate
from support.devices import choose_device, device_line, set_seed
from support.figures import plot_curves
from support.files import about, load_checkpoint
from support.flags import check_ranges, flag, parse_flags, run_main
from support.runs import Stopped, open_run
from trajectories import ReplayBuffer, load_dataset
from utils import as_floats, expected_time, mean_of
from videos import record
from workers import open_envs


@dataclasses.dataclass
class TrainConfig:
    """environment, budget, exploration and files of the online half"""
    dataset: str = flag('antmaze-medium-navigate-v0', 'OGBench dataset name; it names the environment too')
    offline_checkpoint: str = flag('', "offline run's last.pth or best_model.pth; default: last.pth of the newest "
                                       'offline run of --dataset')
    dataset_path: str = flag('', 'npz file with the offline states; default: what the offline run used')
    data_dir: str = flag('datasets', 'folder of dataset files; downloads go there')
    dataset_url: str = flag('', 'base URL of a mirror to download from')
    max_trajectories: int = flag(0, 'offline trajectories to imitate; 0: as many as the offline run used', least=0)
    max_episodes: int = flag(1000, 'episodes to collect', least=1)
    max_steps: int = flag(0, 'environment steps to collect, random ones included; 0: --max_episodes alone decides',
                          least=0)
    random_steps: int = flag(10_000, 'first environment steps, with random actions', least=0)
    random_range: float = flag(1.5, 'random actions are uniform in so many times the action range, and clipped: '
                                    'whoever walks well uses its ends', above=0)
    num_envs: int = flag(8, 'episodes collected side by side in one round', least=1)
    env_processes: int = flag(0, 'processes for the environments; 0: one per core, at most 4; results are the same',
                              least=0)
    initial_updates: int = flag(8000, 'gradient steps after the random steps', least=1)
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
    seed: int = flag(0, 'seed of everything random', least=0, most=2**32 - 1)
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    tensorboard: bool = flag(False, 'log to TensorBoard as well; needs its package')
    wandb: bool = flag(False, 'log to Weights & Biases as well; needs its package')
    save_dir: str = flag('', 'run folder; default online_checkpoints/<dataset>/seed<seed>, a new one each time')
    resume: bool = flag(False, 'continue the newest run of this dataset and seed (or the one in --save_dir)')


def check_flags(config, agent_config):
    """Raise ValueError for flags that cannot work, before anything is loaded."""
    check_ranges(config, agent_config)
    parse_name(config.dataset)
    for name in ('max_steps', 'random_steps'):
        if 0 < (value := getattr(config, name)) < config.num_envs:
            raise ValueError(f'--{name} {value}: must be 0 or at least --num_envs {config.num_envs}')
    for name in ('epsilon', 'action_noise'):
        start, end = (getattr(config, f'{name}_{which}') for which in ('start', 'end'))
        if end > start:
            raise ValueError(f'--{name}_end {end}: must be at most --{name}_start {start}')


def newest_offline_run(dataset):
    """-> last.pth of the newest offline run of `dataset`; FileNotFoundError says how to make one."""
    found = sorted(Path('offline_checkpoints', dataset).glob('*/last.pth'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'no offline run of {dataset} under offline_checkpoints/; run offline_trainer.py '
                                f'--dataset {dataset} first, or name a file with --offline_checkpoint')
    return found[-1]


def draw(folder, log, config):
    panels = [
        ('evaluated success rate', {'mean': 'evaluation/overall_success'}
         | {f'task {k}': f'evaluation/task{k}_success' for k in range(1, 6)}, False),
        ('success of training episodes', {'mean': 'collect/success'}, False),
        ('episode reward', {'mean': 'collect/reward'}, False),
        ('episode length', {'mean': 'collect/length'}, False),
        ('inverse dynamics, one step', {'train': 'training/labeler_loss'}, True),
        ('inverse dynamics, policy', {'train': 'training/inverse_dynamics_error'}, True),
        ('epsilon', {'mean': 'collect/epsilon'}, False),
        ('action noise', {'mean': 'collect/action_noise'}, False),
        ('goal-biased exploration rate', {'mean': 'collect/goal_biased_rate'}, False),
        ('proposer', {'train': 'training/proposer_loss'}, True),
        ('gradient norm', {'train': 'training/grad_norm'}, True),
        ('environment steps per second', {'mean': 'time/steps_per_second'}, False)]
    if any('training/critic_loss' in row for row in log.rows):  # --value_interval
        panels[-2] = 'critic and value', {'critic': 'training/critic_loss', 'value': 'training/value_loss'}, True
    plot_curves(log.rows, panels, folder / 'online_training_curves.png', 'environment steps',
                f'OPSO online, {config.dataset}, seed {config.seed}')


def train(config, agent_config):
    """Run (or resume) one online training -> path of last.pth."""
    check_flags(config, agent_config)
    set_seed(config.seed)
    device = choose_device(config.device)
    backend, why = choose_backend(config.mamba_backend, device)
    with open_run('online', __file__, config, agent_config) as run:
        if run.saved:  # the offline run's file is not needed any more
            source, pretrained = run.saved['source'], run.saved['agent']['offline']
            data_flags = run.saved['data']
        else:
            source = Path(config.offline_checkpoint or newest_offline_run(config.dataset))
            content = load_checkpoint(source, 'offline')
            pretrained, data_flags = content['agent'], content['data']
            if data_flags['dataset'] != config.dataset:
                raise ValueError(f"{source} was trained on {data_flags['dataset']}, --dataset is {config.dataset}: "
                                 'they must be the same')
        with about(source):
            offline = OfflineAgent.from_checkpoint(pretrained, device, backend)
        envs = open_envs(config.dataset, config.num_envs, config.env_processes, make_env)
        if envs[0].observation_space.shape != (offline.observation_dim,):
            raise ValueError(f'{source} was trained on observations of {offline.observation_dim} dimensions, '
                             f'{config.dataset} has {envs[0].observation_space.shape[0]}')
        sampling = offline.config.sampling()
        with run.stop.at_once():
            data, _, note = load_dataset(
                config.dataset, config.dataset_path or data_flags['dataset_path'], config.data_dir,
                config.dataset_url, config.max_trajectories or data_flags['max_trajectories'], **sampling)
        agent = OnlineAgent(offline, envs[0].action_space.shape[0], agent_config)
        replay = ReplayBuffer(offline.observation_dim, agent.action_dim, **sampling)
        trained = (*agent.nets.parameters(), *(agent.heads.parameters() if agent_config.value_interval else ()))
        print(f'offline checkpoint: {source} ({offline.step:,} updates)\n{note}\n'
              f'{device_line(config.device, device, why)}\n{len(data.starts):,} trajectories, {len(data):,} states of '
              f'{offline.observation_dim} dimensions; {agent.action_dim} actions; '
              f'{sum(p.numel() for p in trained):,} trained parameters\nrun folder: {run.folder}')
        log = learn(run, config, agent, data, replay, envs, {'source': str(Path(source).resolve()), 'data': data_flags})
        final = log.rows[-1]
        print(f'success over {config.final_eval_episodes} episodes of each task after {final["step"]:,.0f} '
              f'environment steps: {final["evaluation/overall_success"]:.1%}\n'
              f'curves: {run.folder / "online_training_curves.png"}; evaluation paths: '
              f'{run.folder / "maze_paths.png"}\ncheckpoints: {run.folder / "last.pth"}, '
              f'{run.folder / "best_model.pth"} (highest evaluated success)\n'
              f'next: python evaluate.py --checkpoint {run.folder / "last.pth"}')
    return run.folder / 'last.pth'


def learn(run, config, agent, data, replay, envs, origin):
    """Rounds of episodes, updates and evaluation until the budget is spent -> MetricsLog; goes on where `run.saved`
    ended: between two rounds, or among the updates of `work`, the round in progress."""
    collector, rng, best, work = Collector(config, envs, agent), np.random.default_rng([config.seed, 4]), -1.0, None
    if run.saved:
        agent.restore(run.saved['agent'])
        replay.restore(run.saved['replay'])
        collector.restore(run.saved['collector'])
        rng.bit_generator.state = run.saved['rng']
        best, work = run.saved['best'], run.saved['work']
    log = run.begin('online.csv', collector.steps - bool(work), data.fingerprint(),
                    offline_checkpoint=origin['source'])

    def save(name='last.pth', **extra):
        run.save(origin | {'dataset': config.dataset, 'agent': agent.checkpoint()} | extra, name)

    def save_all():
        save(replay=replay.content(), collector=collector.content(), rng=rng.bit_generator.state, best=best, work=work)

    maze = Maze(make_env(config.dataset))
    if collector.done and not work:
        print(f'this run is finished: {collector.episodes:,} episodes, {collector.steps:,} environment steps; '
              '--max_episodes and --max_steps can be raised')
        draw(run.folder, log, config)
        return log
    with run.stop.at_once():
        store, own = LatentStore(data, agent), LatentStore(replay, agent)
    unit, total, done = (('step', config.max_steps, collector.steps) if config.max_steps
                         else ('episode', config.max_episodes, collector.episodes))
    progress = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, mininterval=1.0)
    rounds = 0
    try:
        while work or not collector.done:
            rounds, first, clock = rounds + 1, progress.n, time.perf_counter()
            if not work:
                with run.stop.at_once():  # episodes cannot be saved half-way: a stop drops the round
                    work = collect(config, collector, agent, replay, progress)
                own.refresh(work.pop('dropped'))
            update(run, agent, store, own, rng, work)
            row, interval = work['row'] | mean_of(work['infos'], 'training/'), config.eval_interval or float('inf')
            if collector.done or collector.steps // interval > work['before'] // interval:
                with run.stop.at_once():
                    metrics, episodes = run_evaluation(config, agent, envs, collector.done)
                row |= metrics
                draw_paths(maze, episodes, run.folder / 'maze_paths.png',
                           f'{config.dataset}, {collector.steps:,} steps')
                if config.video and collector.done:
                    record(config.dataset, episodes, run.folder / 'videos')
                progress.set_postfix_str(f"success {row['evaluation/overall_success']:.0%}")
            success, work = row.get('evaluation/overall_success', -1.0), None
            log.log(collector.steps, row)
            if success >= max(best, 0.0):
                best = success
                save('best_model.pth', success=success)  # first: a kill in between repeats it
            save_all()
            draw(run.folder, log, config)
            if rounds == 2 and not collector.done:  # the first round is unlike the others: random steps
                progress.write(expected_time(first, progress.n, total, time.perf_counter() - clock))
            run.stop.check()
    except Stopped:
        if work:
            save_all()
        draw(run.folder, log, config)
        raise
    finally:
        progress.close()
    return log


def collect(config, collector, agent, replay, progress):
    """Add one round of episodes to `replay` -> what is to be done about them, in builtins for a checkpoint."""
    before, (epsilon, noise) = collector.steps, collector.schedules()
    row = {'collect/epsilon': epsilon, 'collect/action_noise': noise}
    dropped = 0
    for episode in collector.round(progress, row):
        if episode['length']:  # 0: a fault at its first step
            dropped += replay.add(episode['observations'], episode['actions'])
    steps = collector.steps - before
    updates = round(config.update_ratio * steps) if agent.step else config.initial_updates
    return {'row': row, 'before': before, 'updates': updates, 'infos': [], 'dropped': dropped}


def update(run, agent, store, own, rng, work):
    """The gradient steps that `work` still lacks; numbers go to its `infos`. Raises `Stopped` between two of them."""
    for _ in tqdm(range(work['updates'] - len(work['infos'])), 'updates', leave=False, dynamic_ncols=True,
                  mininterval=1.0):
        batch = agent.sample(store, own, rng)
        work['infos'].append(as_floats(agent.update(batch)))
        run.check_finite(agent.step, work['infos'][-1], batch)
        run.stop.check()


def run_evaluation(config, agent, envs, final):
    count = config.final_eval_episodes if final else config.eval_episodes
    with tqdm(total=5 * count, desc='evaluation', leave=False, dynamic_ncols=True, mininterval=1.0) as progress:
        return evaluate(agent, envs, count, episode_seed(config.seed, 5), progress)


def main(argv=None):
    train(*parse_flags(__doc__.splitlines()[0], TrainConfig, OnlineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
