"""Draw values, proposals and latents of a checkpoint on its maze, and paths and plans of an online one.

Without a maze, values and latents are drawn along trajectories, and values along evaluation episodes.

    python scripts/analysis/draw_maze.py --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

from PIL import Image  # noqa: E402  matplotlib brings it

from environments.safe_env import open_envs  # noqa: E402
from figures.maze_figures import Probe, draw_agent, draw_episode, draw_plan  # noqa: E402
from figures.pictures import draw_evaluation, draw_trajectories, open_maze  # noqa: E402
from figures.videos import record  # noqa: E402
from observing.observation_models import observation_model_of  # noqa: E402
from offline_agent import OfflineAgent  # noqa: E402
from ogbench_utils import make_env  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from planning.graph_planner import GraphPlanner  # noqa: E402
from rollouts import evaluate  # noqa: E402
from support.devices import choose_device  # noqa: E402
from support.figures import format_flag  # noqa: E402
from support.files import load_checkpoint  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from trajectories import load_dataset  # noqa: E402


@dataclasses.dataclass
class DrawConfig:
    """checkpoint, data and output"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an offline or online run (required)')
    dataset: str = flag('', 'dataset to evaluate the networks on; default: that of the checkpoint')
    dataset_path: str = flag('', 'npz file of the dataset, instead of a search by name')
    data_dir: str = flag('datasets', 'folder of dataset files')
    max_trajectories: int = flag(100, 'number of trajectories to load; 0 loads all')
    episodes_per_task: int = flag(10, 'evaluation episodes of each task')
    num_envs: int = flag(8, 'episodes run in parallel', least=1)
    seed: int = flag(0, 'seed of the starts and goals of the episodes')
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    video: bool = flag(False, 'also a small video of one episode (EGL or OSMesa)')
    format: str = format_flag()
    output: str = flag('', 'folder of the figures; default: that of the checkpoint')


def run(config):
    """Draw all figures of a checkpoint and return their paths.

    Raises:
        ValueError: without --checkpoint.
    """
    if not config.checkpoint:
        raise ValueError('--checkpoint is required: last.pth or best_model.pth of a run')
    check_ranges(config)

    # agent
    checkpoint = load_checkpoint(config.checkpoint)
    device = choose_device(config.device)
    prepare_cpu(device)
    online = checkpoint['kind'] == 'online'
    if online:
        agent = OnlineAgent.from_state_dict(checkpoint['agent'], device)
        offline = agent.offline
    else:
        offline = OfflineAgent.from_state_dict(checkpoint['agent'], device)

    # data
    name = config.dataset or checkpoint['data']['dataset']
    path = config.dataset_path or ('' if config.dataset else checkpoint['data']['path'])
    observation_model = observation_model_of(checkpoint)
    data = load_dataset(name, path, config.data_dir, '', config.max_trajectories,
                        observation_model=observation_model,
                        num_dimensions=None if observation_model else offline.observation_dim)[0]

    # outputs of the networks on the data, and the agent's episodes
    folder = Path(config.output or Path(config.checkpoint).parent)
    title = f'{name}, {offline.step:,} offline updates'
    maze = open_maze(name, observation_model)
    probe = Probe(maze, data.observations) if maze else None
    pictures = (draw_agent(probe, offline, folder, title, config.format) if probe else
                draw_trajectories(data, offline, folder, title, config.format))
    if online:
        pictures += draw_acting(config, name, agent, maze, probe, folder, observation_model)

    for picture in pictures:
        if picture.suffix == '.png':
            shrink(picture)
    print('\n'.join(map(str, pictures)))
    return pictures


def draw_acting(config, name, agent, maze, probe, folder, observation_model):
    """Evaluate an `OnlineAgent`, draw its paths, one episode and its plans, and return the figures' paths."""
    with open_envs(name, config.num_envs, make_env, observation_model) as envs:
        episodes = evaluate(agent, envs, config.episodes_per_task, config.seed)[1]
    pictures = [folder / f'{"maze_paths" if maze else "episode_values"}.{config.format}']
    draw_evaluation(maze, agent.offline, episodes, pictures[0], f'Evaluation episodes, {name}')

    # the solved episode of median length
    best_first = sorted(episodes, key=lambda episode: (-episode.success, episode.length))
    solved = sum(bool(episode.success) for episode in episodes)
    example = best_first[solved // 2]
    if maze:
        pictures.append(folder / f'maze_episode.{config.format}')
        title = f'Subgoals along an episode of task {example.task}'
        draw_episode(probe, agent.offline, example, pictures[-1], title)
    if maze and not agent.offline.has_objects:
        pictures.append(folder / f'maze_plan.{config.format}')
        planner = GraphPlanner(agent.data_map, agent.encoder.goal_features)
        draw_plan(maze, planner, pictures[-1], f'Plans on the graph of the data, {name}')
    if config.video:
        for path in record(name, [example], folder, observation_model, size=160, every=24):
            pictures.append(path.replace(path.with_stem('episode')))
    return pictures


def shrink(path):
    """Reduce a PNG to 256 colours, a third of its size without a visible difference."""
    with Image.open(path) as picture:
        small = picture.convert('RGB').quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main(argv=None):
    run(*parse_flags(__doc__, DrawConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
