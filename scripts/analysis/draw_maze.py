"""Draw what a checkpoint knows on its maze: values, proposals, latents; of an online one also its paths and plans.
Without a maze: values and latents along trajectories, and values along evaluation episodes.

    python scripts/analysis/draw_maze.py --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth
"""

import dataclasses
import sys
from pathlib import Path

from PIL import Image  # matplotlib brings it

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

from figures.maze_figures import Probe, draw_episode, draw_knowledge, draw_plan  # noqa: E402
from figures.pictures import draw_evaluation, draw_trajectories, open_maze  # noqa: E402
from figures.videos import record  # noqa: E402
from observing.observation_models import observation_model_of  # noqa: E402
from offline_agent import OfflineAgent  # noqa: E402
from ogbench_utils import make_env  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from rollouts import evaluate  # noqa: E402
from support.devices import choose_device  # noqa: E402
from support.files import load_checkpoint  # noqa: E402
from support.flags import flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from trajectories import load_dataset  # noqa: E402


@dataclasses.dataclass
class DrawConfig:
    """what to draw, from which data, where to"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an offline or online run (required)')
    dataset: str = flag('', 'data to look at; default: what the checkpoint was trained on')
    dataset_path: str = flag('', 'npz file to use instead of searching by name')
    data_dir: str = flag('datasets', 'folder of dataset files')
    max_trajectories: int = flag(100, 'trajectories to look at; 0 takes all')
    episodes_per_task: int = flag(10, 'episodes of each task whose paths are drawn')
    seed: int = flag(0, 'seed of their starts and goals')
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    video: bool = flag(False, 'a small video of one episode, too; needs EGL or OSMesa')
    output: str = flag('', 'folder of the pictures; default: the folder of the checkpoint')


def run(config):
    """-> list of the pictures' paths."""
    if not config.checkpoint:
        raise ValueError('--checkpoint is required: last.pth or best_model.pth of a run')

    checkpoint = load_checkpoint(config.checkpoint)
    device = choose_device(config.device)
    prepare_cpu(device)
    online = checkpoint['kind'] == 'online'
    name = config.dataset or checkpoint['data']['dataset']
    folder = Path(config.output or Path(config.checkpoint).parent)

    if online:
        agent = OnlineAgent.from_state_dict(checkpoint['agent'], device)
        offline = agent.offline
    else:
        offline = OfflineAgent.from_state_dict(checkpoint['agent'], device)

    path = config.dataset_path or ('' if config.dataset else checkpoint['data']['path'])
    observation_model = observation_model_of(checkpoint)
    data = load_dataset(name, path, config.data_dir, '', config.max_trajectories, observation_model=observation_model)[0]
    maze = open_maze(name, observation_model)
    probe = Probe(maze, data.observations) if maze else None
    title = f'{name}, {offline.step:,} offline updates'

    if probe:
        pictures = draw_knowledge(probe, offline, folder, title)
    else:
        pictures = draw_trajectories(data, offline, folder, title)
    if online:
        pictures += draw_acting(config, name, agent, maze, probe, folder, observation_model)
    for picture in pictures:
        if picture.suffix == '.png':
            shrink(picture)
    print('\n'.join(map(str, pictures)))
    return pictures


def draw_acting(config, name, agent, maze, probe, folder, observation_model):
    """Evaluate an `OnlineAgent`, draw its paths, one episode and its plans -> list of the pictures' paths."""
    envs = [observation_model.wrap(make_env(name)) for _ in range(8)]
    episodes = evaluate(agent, envs, config.episodes_per_task, config.seed)[1]
    pictures = [folder / ('maze_paths.png' if maze else 'episode_values.png')]
    draw_evaluation(maze, agent.offline, episodes, pictures[0], f'Evaluation episodes, {name}')

    best_first = sorted(episodes, key=lambda episode: (-episode.success, episode.length))
    solved = sum(bool(episode.success) for episode in episodes)
    example = best_first[solved // 2]  # a solved one of median length
    if maze:
        pictures.append(folder / 'maze_episode.png')
        draw_episode(probe, agent.offline, example, pictures[-1], f'Proposals along an episode of task {example.task}')
    if maze and agent.state_map:
        pictures.append(folder / 'maze_plan.png')
        draw_plan(maze, agent.state_map, pictures[-1], f'Plans on the map of the data, {name}')
    if config.video:
        for path in record(name, [example], folder, observation_model, size=160, every=24):
            pictures.append(path.replace(path.with_stem('episode')))
    return pictures


def shrink(path):
    """A third of the bytes for the same look: 256 colours."""
    with Image.open(path) as picture:
        small = picture.convert('RGB').quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], DrawConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
