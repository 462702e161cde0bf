"""Pretrain OPSO offline on trajectories of states: data -> agent -> update, validate, save, draw.

    python offline_trainer.py --dataset antmaze-medium-navigate-v0 --max_trajectories 100 --num_epochs 200
"""

import dataclasses
import signal
import time

import support.threads  # noqa: F401  before torch

import numpy as np
import torch
from tqdm import tqdm

from mamba import choose_backend
from maze_figures import TrainingPictures
from offline_agent import OfflineAgent, OfflineConfig
from ogbench_utils import parse_name
from support import parallel
from support.devices import choose_device, device_line, set_seed
from support.figures import plot_curves
from support.flags import check_ranges, flag, parse_flags, run_main
from support.runs import Stopped, open_run
from trajectories import load_dataset
from utils import as_floats, expected_time, mean_of

METRICS = {'critic': 'critic_loss', 'value V': 'value_loss', 'next state': 'state_loss', 'reward/done': 'reward_loss',
           'InfoNCE': 'infonce_loss', 'alignment': 'alignment_loss', 'proposer': 'proposer_loss',
           'total loss': 'total_loss'}


@dataclasses.dataclass
class TrainConfig:
    """data, budget and files of offline pretraining"""
    dataset: str = flag('antmaze-medium-navigate-v0', 'OGBench dataset name')
    dataset_path: str = flag('', 'npz file to use instead of searching by name')
    data_dir: str = flag('datasets', 'folder of dataset files; downloads go there')
    dataset_url: str = flag('', 'base URL of a mirror to download from')
    max_trajectories: int = flag(0, 'use this many trajectories; 0 uses all', least=0)
    batch_size: int = flag(16, 'windows per update; each gives --positions_per_window transitions', least=1)
    num_epochs: int = flag(200, 'passes over the windows (of context_length states) of the training trajectories',
                           least=1)
    num_updates: int = flag(0, 'gradient steps, instead of --num_epochs; 0 follows --num_epochs', least=0)
    log_interval: int = flag(100, 'updates between rows of train.csv', least=1)
    val_interval: int = flag(500, 'updates between validations, checkpoints and redrawn curves', least=1)
    val_batches: int = flag(8, 'batches per validation, the same ones every time', least=1)
    maze_figures: bool = flag(True, 'draw V, proposals and latents on the maze at validations')
    seed: int = flag(0, 'seed of everything random', least=0, most=2**32 - 1)
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    tensorboard: bool = flag(False, 'log to TensorBoard as well; needs its package')
    wandb: bool = flag(False, 'log to Weights & Biases as well; needs its package')
    save_dir: str = flag('', 'run folder; default offline_checkpoints/<dataset>/seed<seed>, a new one each time')
    resume: bool = flag(False, 'continue the newest run of this dataset and seed (or the one in --save_dir)')


def check_flags(config, agent_config):
    """Raise ValueError for flags that cannot work, before anything is loaded."""
    check_ranges(config, agent_config)
    agent_config.check()
    parse_name(config.dataset)


def validate(agent, dataset, config):
    """Mean of `total_loss`'s numbers over the same few batches each time."""
    rng = np.random.default_rng(12345)
    with torch.no_grad(), parallel.alone():
        infos = [agent.total_loss(agent.to_device(dataset.sample(config.batch_size, rng)))[1]
                 for _ in range(config.val_batches)]
    return mean_of(infos)


def draw(folder, log, config):
    panels = [(name, {'train': f'training/{key}', 'validation': f'validation/{key}'}, key != 'total_loss')
              for name, key in METRICS.items()]
    panels += [('V(z, z_g)', {'mean': 'training/v_mean', 'min': 'training/v_min', 'max': 'training/v_max'}, False),
               ('InfoNCE accuracy', {'train': 'training/infonce_accuracy',
                                     'validation': 'validation/infonce_accuracy'}, False),
               ('gradient norm', {'train': 'training/grad_norm'}, True),
               ('updates per second', {'train': 'time/updates_per_second'}, False)]
    plot_curves(log.rows, panels, folder / 'training_curves.png', 'gradient steps',
                f'OPSO offline, {config.dataset}, seed {config.seed}')


def train(config, agent_config):
    """Run (or resume) one training -> path of last.pth."""
    check_flags(config, agent_config)
    set_seed(config.seed)
    with parallel.processes(choose_device(config.device)) as device:
        if config.batch_size % parallel.world_size():
            raise ValueError(f'--batch_size {config.batch_size}: must be a multiple of the {parallel.world_size()} '
                             'processes that share it')
        if parallel.rank():
            return follow(config, agent_config, device)
        return lead(config, agent_config, device)


def load(config, agent_config):
    return load_dataset(config.dataset, config.dataset_path, config.data_dir, config.dataset_url,
                        config.max_trajectories, batch_size=config.batch_size, **agent_config.sampling())


def budget(config, data):
    """-> (updates in all, updates per epoch)"""
    per_epoch = -(-data.num_windows // config.batch_size)
    return config.num_updates or config.num_epochs * per_epoch, per_epoch


def follow(config, agent_config, device):
    """What the other processes of torchrun do: their share of every update. Process 0 decides and writes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it stops when process 0 does
    data = load(config, agent_config)[0]
    agent = OfflineAgent(data.observations.shape[1], agent_config, device,
                         choose_backend(config.mamba_backend, device)[0])
    rng, state = np.random.default_rng(), parallel.from_first()
    agent.restore(state['agent'])
    rng.bit_generator.state = state['rng']
    stops = False
    while agent.step < budget(config, data)[0] and not stops:
        agent.update(agent.to_device(parallel.share(data.sample(config.batch_size, rng))))
        stops = parallel.any_stops(False)


def lead(config, agent_config, device):
    backend, why = choose_backend(config.mamba_backend, device)
    with open_run('offline', __file__, config, agent_config) as run:
        with run.stop.at_once():
            data, val_data, note = load(config, agent_config)
        agent = OfflineAgent(data.observations.shape[1], agent_config, device, backend)
        agent.set_statistics(*data.statistics(), data.slowness())
        total, per_epoch = budget(config, data)
        print(f'{note}\n{device_line(config.device, device, why)}\n{len(data.starts):,} trajectories, {len(data):,} '
              f'states of {agent.observation_dim} dimensions, {data.num_windows:,} windows of {data.context_length}\n'
              f'{sum(p.numel() for p in agent.nets.parameters()):,} parameters; {total:,} updates, {per_epoch:,} per '
              f'epoch\nrun folder: {run.folder}')
        learn(run, config, agent, data, val_data, total, per_epoch)
        print(f'curves: {run.folder / "training_curves.png"}'
              f'{"; on the maze: maze_*.png beside it" if config.maze_figures else ""}\n'
              f'checkpoints: {run.folder / "last.pth"} (used online), '
              f'{run.folder / "best_model.pth"} (lowest validation loss)\nnext: python online_trainer.py '
              f'--dataset {config.dataset} --offline_checkpoint {run.folder / "last.pth"}')
    return run.folder / 'last.pth'


def learn(run, config, agent, data, val_data, total, per_epoch):
    """Update until `total`, log, validate, save and draw; goes on where `run.saved` ended."""
    rng, best, infos = np.random.default_rng(config.seed), float('inf'), []
    if run.saved:
        agent.restore(run.saved['agent'])
        rng.bit_generator.state = run.saved['rng']
        best, infos = run.saved['best'], run.saved['infos']
    parallel.from_first({'agent': agent.checkpoint(), 'rng': rng.bit_generator.state})
    log = run.begin('train.csv', agent.step, f'{data.fingerprint()}; validation {val_data.fingerprint()}')
    pictures = TrainingPictures(config.dataset, data.observations, run.folder) if config.maze_figures else None

    def save(name='last.pth'):
        run.save({'data': data_flags(config), 'agent': agent.checkpoint(), 'rng': rng.bit_generator.state,
                  'best': best, 'infos': infos}, name)

    if agent.step >= total:
        print(f'this run is finished: {agent.step:,} of {total:,} updates are done; --num_updates can be raised')
        draw(run.folder, log, config)
    progress = tqdm(total=total, initial=agent.step, unit='update', dynamic_ncols=True, mininterval=1.0)
    first = since = agent.step
    clock = time.perf_counter()
    try:
        while agent.step < total:
            batch = data.sample(config.batch_size, rng)
            infos.append(as_floats(agent.update(agent.to_device(parallel.share(batch)))))
            run.check_finite(agent.step, infos[-1], batch)
            progress.update()
            if agent.step - first == 30:
                progress.write(expected_time(first, agent.step, total, time.perf_counter() - clock))
            validating = agent.step % config.val_interval == 0 or agent.step == total
            if validating or agent.step % config.log_interval == 0:
                speed = (agent.step - since) / (time.perf_counter() - clock)
                row = mean_of(infos, 'training/') | {'time/updates_per_second': speed,
                                                     'epoch': agent.step / per_epoch}
                infos = []
                if validating:
                    metrics = validate(agent, val_data, config)
                    row |= {f'validation/{k}': v for k, v in metrics.items()}
                    progress.set_postfix_str(f"loss {row['training/total_loss']:.3f}, "
                                             f"validation {metrics['total_loss']:.3f}")
                log.log(agent.step, row)
                if validating:
                    if metrics['total_loss'] <= best:
                        best = metrics['total_loss']
                        save('best_model.pth')  # first: a kill in between repeats it
                    save()
                    draw(run.folder, log, config)
                    if pictures:
                        pictures.draw(agent, f'{config.dataset}, {agent.step:,} updates', agent.step == total)
                since, clock = agent.step, time.perf_counter()
            if parallel.any_stops(run.stop.signal):
                raise Stopped
    except Stopped:
        save()
        draw(run.folder, log, config)
        raise
    finally:
        progress.close()


def data_flags(config):
    return {name: getattr(config, name) for name in ('dataset', 'dataset_path', 'data_dir', 'max_trajectories')}


def main(argv=None):
    train(*parse_flags(__doc__.splitlines()[0], TrainConfig, OfflineConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
