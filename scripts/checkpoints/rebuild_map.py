"""Rebuild the map on which an agent plans, with other nodes or waypoints. Nothing is trained.

    python scripts/checkpoints/rebuild_map.py --checkpoint online_checkpoints/NAME/seed0/last.pth \\
        --nodes 500 --output rebuilt.pth
    python evaluate.py --checkpoint rebuilt.pth --compare online_checkpoints/NAME/seed0/last.pth
"""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

from observing.observation_models import observation_model_of  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from support.files import load_checkpoint, prefix_errors, save_checkpoint  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from tasks import build_map  # noqa: E402
from trajectories import load_recorded  # noqa: E402


@dataclasses.dataclass
class MapConfig:
    """checkpoint, data and size of the map"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    output: str = flag('', 'file to write; default: the checkpoint itself')
    dataset_path: str = flag('', 'npz file of the states; default: that of the offline run')
    waypoint_steps: int = flag(0, 'spacing of waypoints in steps; 0: that of the run', least=0)
    nodes: int = flag(0, 'nodes of the graph; 0: as many as cover the data', least=0)
    seed: int = flag(0, 'seed of the nodes', least=0)


def run(config):
    """Write a checkpoint with the rebuilt map and return its path."""
    if not config.checkpoint:
        raise ValueError('--checkpoint is required: last.pth or best_model.pth of an online run')
    check_ranges(config)

    checkpoint = load_checkpoint(config.checkpoint, 'online')
    if config.waypoint_steps:
        checkpoint['agent']['config']['waypoint_steps'] = config.waypoint_steps
    with prefix_errors(config.checkpoint):
        agent = OnlineAgent.from_state_dict(checkpoint['agent'])

    data, source = load_recorded(checkpoint['data'], config.checkpoint, agent.offline, config.dataset_path,
                                 observation_model=observation_model_of(checkpoint))
    print(source.note)

    begin = time.perf_counter()
    data_map = build_map(agent.offline, agent.config, data, config.seed, config.nodes)
    print(f'{data_map}; built in {time.perf_counter() - begin:.1f} s')

    output = Path(config.output or config.checkpoint)
    checkpoint['agent']['map'] = data_map.state_dict()
    save_checkpoint(output, checkpoint)
    print(f'written: {output}')
    return output


def main(argv=None):
    run(*parse_flags(__doc__, MapConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
