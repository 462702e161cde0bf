"""Learn to act from a pretrained OPSO checkpoint: random steps -> then rounds of episodes, updates, evaluation.

    python online_trainer.py --dataset antmaze-medium-navigate-v0 --max_episodes 1000 --batch_size 8
"""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from figures import plot_curves
from model import choose_backend
from offline_agent import OfflineAgent
from ogbench_utils import episode_seed, make_env
from online_agent import LatentStore, OnlineAgent, OnlineConfig
from rollouts import Collector, evaluate
from runs import MetricsLog, check_unchanged, load_checkpoint, new_run_dir, save_checkpoint, write_config
from trajectories import ReplayBuffer, load_dataset
from utils import choose_device, flag, mean_of, parse_flags, run_main, set_seed


@dataclasses.dataclass
class TrainConfig:
    """environment, budget, exploration and files of the online half"""
    dataset: str = flag('antmaze-medium-navigate-v0', 'OGBench dataset name; it names the environment too')
    offline_checkpoint: str = flag('', "offline run's last.pth or best_model.pth; default: last.pth of the newest "
                                       'offline run of --dataset')
    dataset_path: str = flag('', 'npz file with the offline states; default: what the offline run used')
    data_dir: str = flag('datasets', 'folder of dataset files; downloads go there')
    dataset_url: str = flag('', 'base URL of a mirror to download from')
    max_trajectories: int = flag(0, 'offline trajectories to imitate; 0: as many as the offline run used')
    max_episodes: int = flag(1000, 'episodes to collect')
    max_steps: int = flag(0, 'environment steps to collect, random ones included; 0: --max_episodes alone decides')
    random_steps: int = flag(10_000, 'first environment steps, with uniformly random actions')
    num_envs: int = flag(8, 'episodes collected side by side in one round')
    initial_updates: int = flag(3000, 'gradient steps after the random steps')
    update_ratio: float = flag(0.05, 'gradient steps per environment step afterwards')
    epsilon_start: float = flag(0.30, 'probability of goal-biased proposals at the first episode')
    epsilon_end: float = flag(0.05, 'the same after --schedule_episodes')
    action_noise_start: float = flag(0.20, 'standard deviation of the action noise at the first episode')
    action_noise_end: float = flag(0.05, 'the same after --schedule_episodes')
    schedule_episodes: int = flag(200, 'episodes over which both schedules run, linearly')
    eval_interval: int = flag(25_000, 'environment steps between evaluations; 0 evaluates at the end only')
    eval_episodes: int = flag(4, 'episodes per task in an evaluation')
    final_eval_episodes: int = flag(20, 'episodes per task in the last evaluation')
    seed: int = flag(0, 'seed of everything random')
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    save_dir: str = flag('', 'run folder; default online_checkpoints/<dataset>/seed<seed>, a new one each time')
    resume: bool = flag(False, 'continue the newest run of this dataset and seed (or the one in --save_dir)')


def check_flags(config, agent_config):
    """Raise ValueError for numbers that cannot work, before anything is loaded."""
    numbers = dataclasses.asdict(config) | dataclasses.asdict(agent_config)
    for name in ('max_episodes', 'num_envs', 'initial_updates', 'eval_episodes', 'final_eval_episodes', 'batch_size',
                 'value_interval', 'idm_hidden_dim'):
        if numbers[name] < 1:
            raise ValueError(f'--{name} {numbers[name]}: must be at least 1')
    for name in ('max_steps', 'random_steps'):
        if numbers[name] < 0 or 0 < numbers[name] < config.num_envs:
            raise ValueError(f'--{name} {numbers[name]}: must be 0 or at least --num_envs {config.num_envs}')
    for name in ('epsilon', 'action_noise'):
        start, end = numbers[f'{name}_start'], numbers[f'{name}_end']
        if not 0 <= end <= start:
            raise ValueError(f'--{name}_end {end}: must lie between 0 and --{name}_start {start}')


def newest_offline_run(dataset):
    """-> last.pth of the newest offline run of `dataset`; FileNotFoundError says how to make one."""
    found = sorted(Path('offline_checkpoints', dataset).glob('*/last.pth'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'no offline run of {dataset} under offline_checkpoints/; run offline_trainer.py '
                                f'--dataset {dataset} first, or name a file with --offline_checkpoint')
    return found[-1]


def draw(folder, log, title):
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
        ('critic and value', {'critic': 'training/critic_loss', 'value': 'training/value_loss'}, True),
        ('proposer', {'train': 'training/proposer_loss'}, True),
        ('environment steps per second', {'mean': 'time/steps_per_second'}, False)]
    plot_curves(log.rows, panels, folder / 'online_training_curves.png', 'environment steps', title)


def train(config, agent_config):
    """Run (or resume) one online training -> path of last.pth."""
    check_flags(config, agent_config)
    set_seed(config.seed)
    device = choose_device(config.device)
    backend, why = choose_backend(config.mamba_backend, device)
    folder = new_run_dir('online_checkpoints', config.dataset, config.seed, config.save_dir, config.resume).resolve()
    saved = load_checkpoint(folder / 'last.pth', 'online') if config.resume else None
    source = Path(config.offline_checkpoint or (saved['source'] if saved else newest_offline_run(config.dataset)))
    pretrained = load_checkpoint(source, 'offline')
    offline = OfflineAgent.from_checkpoint(pretrained['agent'], device, backend)
    envs = [make_env(config.dataset) for _ in range(config.num_envs)]
    if envs[0].observation_space.shape != (offline.observation_dim,):
        raise ValueError(f'{source} was trained on observations of {offline.observation_dim} dimensions, '
                         f'{config.dataset} has {envs[0].observation_space.shape[0]}')
    sampling = offline.config.sampling()
    data, _, note = load_dataset(
        config.dataset, config.dataset_path or pretrained['data']['dataset_path'], config.data_dir,
        config.dataset_url, config.max_trajectories or pretrained['data']['max_trajectories'], **sampling)
    agent = OnlineAgent(offline, envs[0].action_space.shape[0], agent_config)
    replay = ReplayBuffer(offline.observation_dim, agent.action_dim, **sampling)
    collector, rng, best = Collector(config, envs, agent), np.random.default_rng([config.seed, 4]), -1.0
    if saved:
        check_unchanged(saved['agent']['config'], agent_config)
        agent.restore(saved['agent'])
        replay.restore(saved['replay'])
        collector.restore(saved['collector'])
        rng.bit_generator.state, best = saved['rng'], saved['best']
    write_config(folder, config, agent_config, offline_checkpoint=str(source.resolve()))
    log = MetricsLog(folder / 'online.csv', collector.steps)
    print(f'offline checkpoint: {source} ({offline.step:,} updates)\n{note}\n{why}\nrun folder: {folder}')
    store, own = LatentStore(data, agent), LatentStore(replay, agent)
    unit, total, done = (('step', config.max_steps, collector.steps) if config.max_steps
                         else ('episode', config.max_episodes, collector.episodes))
    progress = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, mininterval=1.0)
    while not collector.done:
        before, (epsilon, noise) = collector.steps, collector.schedules()
        row = {'collect/epsilon': epsilon, 'collect/action_noise': noise}
        dropped = 0
        for episode in collector.round(progress, row):
            dropped += replay.add(episode['observations'], episode['actions'])
        own.refresh(dropped)
        steps = collector.steps - before
        updates = round(config.update_ratio * steps) if agent.step else config.initial_updates
        row |= mean_of([agent.update(agent.sample(store, own, rng)) for _ in tqdm(
            range(updates), 'updates', leave=False, dynamic_ncols=True, mininterval=1.0)], 'training/')
        interval = config.eval_interval or float('inf')
        if collector.done or collector.steps // interval > before // interval:
            row |= run_evaluation(config, agent, envs, collector.done)
            progress.set_postfix_str(f"success {row['evaluation/overall_success']:.0%}")
        success = row.get('evaluation/overall_success', -1.0)
        log.log(collector.steps, row)
        draw(folder, log, f'OPSO online, {config.dataset}, seed {config.seed}')
        content = {'kind': 'online', 'dataset': config.dataset, 'source': str(source.resolve()),
                   'agent': agent.checkpoint()}
        if success >= max(best, 0.0):
            best = success
            save_checkpoint(folder / 'best_model.pth', content | {'success': success})
        save_checkpoint(folder / 'last.pth', content | {
            'replay': replay.content(), 'collector': collector.content(), 'rng': rng.bit_generator.state, 'best': best})
    progress.close()
    print(f'success over {config.final_eval_episodes} episodes of each task after {collector.steps:,} environment '
          f'steps: {log.rows[-1]["evaluation/overall_success"]:.1%}\ncurves: {folder / "online_training_curves.png"}\n'
          f'checkpoints: {folder / "last.pth"}, {folder / "best_model.pth"} (highest evaluated success)\n'
          f'next: python evaluate.py --checkpoint {folder / "last.pth"}')
    return folder / 'last.pth'


def run_evaluation(config, agent, envs, final):
    count = config.final_eval_episodes if final else config.eval_episodes
    with tqdm(total=5 * count, desc='evaluation', leave=False, dynamic_ncols=True, mininterval=1.0) as progress:
        return evaluate(agent, envs, count, episode_seed(config.seed, 5), progress)[0]


def main(argv=None):
    train(*parse_flags(__doc__.splitlines()[0], TrainConfig, OnlineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
