"""Make of the teacher (train_expert.py) the expert that collects data, which does not know which way it faces.

    python scripts/distil_expert.py --robot humanoid --output datasets/humanoid_expert.npz

The humanoid's state tells velocities in the frame of the world, and of the torso's orientation only which way is up.
So the expert sees the state with its velocities told along and across the direction to walk, 67 numbers, and must find
out by walking which way it faces; the teacher sees it. By imitation of the teacher on the expert's own way (DAgger,
Ross et al. 2011), in the mazes, with the noise of the data: in every second of an episode either of the two acts, and
whoever acts, the teacher says what it would have done.

The ant knows which way it faces and learns in the same way what the teacher sees in other words; its expert sees the
state as it is, and then the direction. Needs the packages of requirements.txt only.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from collect_dataset import CollectConfig  # noqa: E402
from collect_maze import MazeCollector, seen_by_expert  # noqa: E402
from train_expert import Meters, ant_features, humanoid_features  # noqa: E402

from support.files import write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import MetricsLog  # noqa: E402


@dataclass(frozen=True)
class Robot:
    teacher_features: Callable  # (state without x, y; torso's axes; direction) -> what the teacher sees
    ground_vectors: tuple | None  # `pairs` of `seen_by_expert`
    scale: np.ndarray  # of what the expert sees
    action_dim: int
    height: int  # index in the observation of the number by which standing is told
    stands: float  # above this

    def seen(self, observation, direction):
        """What the expert sees, scaled, float32."""
        return (seen_by_expert(observation, direction, self.ground_vectors) * self.scale).astype(np.float32)


ROBOTS = {
    'humanoid': Robot(
        humanoid_features, (37, 40),  # velocities of the centre of mass and of the torso
        np.r_[np.ones(37), np.full(6, 0.5), np.full(3, 0.2), np.full(21, 0.1)], 21, height=23, stands=1.2),
    'ant': Robot(
        ant_features, None, np.r_[np.ones(13), np.full(3, 0.3), np.full(3, 0.2), np.full(8, 0.1), 1, 1], 8,
        height=2, stands=0.3),
}


def load_teacher(path):
    """-> function: features (B, F) -> mean actions (B, A); the actor of train_expert.py, in numpy."""
    with np.load(path, allow_pickle=False) as file:
        layers = [(file[f'actor/{i}/w'], file[f'actor/{i}/b']) for i in range(3)]

    def teacher(x):
        for weight, bias in layers[:-1]:
            x = x @ weight + bias
            x = x - x.mean(-1, keepdims=True)
            x = np.maximum(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5), 0)
        weight, bias = layers[-1]
        return np.tanh((x @ weight + bias)[:, :weight.shape[1] // 2])  # the rest are standard deviations

    return teacher


class Walk:
    """A robot in a maze that goes from one random cell to the next, one episode after the other."""

    def __init__(self, robot, maze, seed, rows=1500):
        self.robot = ROBOTS[robot]
        dataset = f'{robot}maze-{maze}-navigate-v0'
        self.collector = MazeCollector(CollectConfig(dataset, 'random', None, 0.0, rows, True, seed))
        self.env = self.collector.env
        self.rng = np.random.default_rng(seed)
        self.rows = rows
        np.random.seed(seed)  # the maze's own
        self.env.action_space.seed(seed)
        self.env.reset(seed=seed)
        self.reset()
        self.left = int(self.rng.integers(1, rows))  # so that not all begin at once

    def reset(self):
        self.observation, _ = self.env.reset(options={'task_info': self.collector.sample_task(self.rng)})
        self.left = self.rows
        self.teacher_acts = True
        self._look()

    def _look(self):
        self.direction = self.collector.direction_to(self.env.get_xy(), self.env.cur_goal_xy)
        torso = self.env.data.xmat[1].reshape(3, 3)
        self.features = self.robot.teacher_features(self.observation[2:], torso, self.direction)
        self.seen = self.robot.seen(self.observation, self.direction)

    def step(self, action):
        self.observation, _, _, _, info = self.env.step(action)
        if info['success']:
            self.collector.move_goal(self.rng)
        self.left -= 1
        self._look()

    def standing(self):
        return self.observation[self.robot.height] > self.robot.stands

    def speed(self):
        """Of the torso along the direction, metres a second."""
        return self.env.data.qvel[:2] @ self.direction


def network(robot, hidden):
    layers = [nn.Linear(len(robot.scale), hidden), nn.GELU(approximate='tanh'), nn.Linear(hidden, hidden),
              nn.GELU(approximate='tanh'), nn.Linear(hidden, robot.action_dim), nn.Tanh()]
    return nn.Sequential(*layers)


def export(robot, student, path):
    """Weights as `collect_maze.load_expert` reads them, float16; the scale of the inputs is folded into w1."""
    first, second, mean = (layer for layer in student if isinstance(layer, nn.Linear))
    arrays = {'w1': first.weight.T * torch.from_numpy(robot.scale)[:, None], 'b1': first.bias,
              'w2': second.weight.T, 'b2': second.bias, 'w_mean': mean.weight.T, 'b_mean': mean.bias}
    arrays = {name: value.detach().numpy().astype(np.float16) for name, value in arrays.items()}
    if robot.ground_vectors is not None:
        arrays['ground_vectors'] = np.array(robot.ground_vectors)
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def distil(flags):
    teacher = load_teacher(flags.teacher)
    torch.set_num_threads(1)
    torch.manual_seed(flags.seed)
    robot = ROBOTS[flags.robot]
    student = network(robot, flags.hidden)
    if flags.resume:
        student.load_state_dict(torch.load(flags.student, weights_only=True))
    optimizer = torch.optim.Adam(student.parameters(), lr=flags.lr)

    mazes = ('medium', 'large')
    walks = [Walk(flags.robot, mazes[i % 2], 1000 * flags.seed + i) for i in range(flags.num_envs)]
    n = len(walks)
    capacity = flags.memory // n * n
    seen = np.zeros((capacity, len(robot.scale)), np.float32)
    wanted = np.zeros((capacity, robot.action_dim), np.float32)
    rng = np.random.default_rng(flags.seed)

    log = MetricsLog(Path(flags.output).with_name(Path(flags.output).stem + '_distil.csv'))
    meters = Meters()
    steps = 0
    begin = saved = time.perf_counter()

    def save():
        export(robot, student, flags.output)
        write_atomic(flags.student, lambda file: torch.save(student.state_dict(), file))

    while steps < flags.num_steps:
        progress = min(1.0, steps / flags.warm_steps)
        x = np.stack([walk.seen for walk in walks])
        labels = teacher(np.stack([walk.features for walk in walks]))
        with torch.no_grad():
            own = student(torch.from_numpy(x)).numpy()
        rows = np.arange(steps, steps + n) % capacity
        seen[rows] = x
        wanted[rows] = labels

        noise = flags.noise * rng.standard_normal(own.shape)
        for i, walk in enumerate(walks):
            if walk.left % 40 == 0:
                walk.teacher_acts = rng.random() < 1 - (1 - flags.teacher_share) * progress
            action = labels[i] if walk.teacher_acts else own[i]
            walk.step(np.clip(action + noise[i], -1, 1))

            who = 'teacher' if walk.teacher_acts else 'student'
            meters.add(f'{who}/standing', walk.standing())
            if walk.standing():
                meters.add(f'{who}/speed', walk.speed())
            if walk.left <= 0:
                walk.reset()
        steps += n

        if steps >= 20_000 and steps // n % flags.interval == 0:
            for group in optimizer.param_groups:
                group['lr'] = flags.lr * max(0.03, 1 - steps / flags.num_steps)
            at = rng.integers(0, min(steps, capacity), flags.batch)
            loss = (student(torch.from_numpy(seen[at])) - torch.from_numpy(wanted[at])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meters.add('loss', loss.detach())

        if steps % 20_480 < n:
            row = meters.means() | {'steps_per_second': steps / (time.perf_counter() - begin)}
            log.log(steps, row)
            print(f'{steps:,} ' + json.dumps({name: float(f'{value:.3g}') for name, value in row.items()}), flush=True)
        if time.perf_counter() - saved > 120:
            save()
            saved = time.perf_counter()
    save()


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--robot', choices=sorted(ROBOTS), default='humanoid')
    parser.add_argument('--teacher', help='what train_expert.py made (default: experts/<robot>/teacher.npz)')
    parser.add_argument('--student', help='weights to --resume from (default: student.pth beside the teacher)')
    parser.add_argument('--output', required=True, help='npz for the collector, such as datasets/humanoid_expert.npz')
    parser.add_argument('--num_steps', type=int, default=1_000_000, help='of the environments (default: 1 million)')
    parser.add_argument('--warm_steps', type=int, default=200_000, help='until the teacher acts least')
    parser.add_argument('--teacher_share', type=float, default=0.1, help='of the time, the least (default: 0.1)')
    parser.add_argument('--noise', type=float, default=0.2, help='on actions; 0.2 in the data (default: 0.2)')
    parser.add_argument('--num_envs', type=int, default=32)
    parser.add_argument('--memory', type=int, default=1_500_000, help='rows kept (default: 1.5 million)')
    parser.add_argument('--interval', type=int, default=2, help='steps of all robots in an update (default: 2)')
    parser.add_argument('--batch', type=int, default=512)
    parser.add_argument('--hidden', type=int, default=512)
    parser.add_argument('--lr', type=float, default=1e-3, help='at first; it falls to a 30th (default: 0.001)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--resume', action='store_true', help='begin with the weights in --student')
    flags = parser.parse_args(argv)

    flags.teacher = flags.teacher or str(ROOT / 'experts' / flags.robot / 'teacher.npz')
    flags.student = flags.student or str(Path(flags.teacher).with_name('student.pth'))
    return flags


def main():
    distil(parse_args())


if __name__ == '__main__':
    run_main(main)
