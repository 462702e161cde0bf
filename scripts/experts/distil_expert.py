"""Distil the teacher of train_expert.py into the expert that collects data, which does not observe its yaw.

    python scripts/experts/distil_expert.py --robot humanoid --output datasets/humanoid_expert.npz

The humanoid's state has velocities in the frame of the world, but no yaw. The expert observes the state (67
dimensions) with its velocities rotated into the frame of the direction, and infers its yaw from walking. It
imitates the teacher, which observes the yaw, on trajectories of both (DAgger, Ross et al. 2011): in the mazes
and with the noise of the data, the acting network is drawn anew every 40 steps, and the teacher labels every
step.

The ant's state contains its yaw. Its expert observes the state and then the direction. The packages of
requirements.txt are sufficient.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts' / 'data')]  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from collect_dataset import CollectConfig  # noqa: E402
from collect_maze import MazeCollector, expert_inputs  # noqa: E402
from torch import nn  # noqa: E402
from train_expert import Meters, ant_features, humanoid_features  # noqa: E402

from support.files import (  # noqa: E402
    load_checkpoint,
    prefix_errors,
    save_checkpoint,
    write_atomic,
)
from support.flags import run_main, summary  # noqa: E402
from support.metrics import MetricsLog  # noqa: E402
from support.npz import load_arrays  # noqa: E402
from utils import load_weights  # noqa: E402

SWITCH_INTERVAL = 40  # steps after which the acting network is drawn anew
FIRST_UPDATE = 20_000  # steps before it
LOG_INTERVAL = 20_480  # steps


@dataclass(frozen=True)
class Robot:
    """Features of teacher and student for one robot."""

    teacher_features: Callable  # (state without x, y; axes of the torso; direction) -> inputs of the teacher
    ground_vectors: tuple | None  # of `expert_inputs`
    scale: np.ndarray  # of the expert's inputs
    action_dim: int
    height: int  # index of a height in the observation
    min_standing_height: float  # metres

    def inputs(self, observation, direction):
        """Return the scaled inputs of the expert, float32."""
        return (expert_inputs(observation, direction, self.ground_vectors) * self.scale).astype(np.float32)


ROBOTS = {
    'humanoid': Robot(
        humanoid_features, (37, 40),  # velocities of the centre of mass and of the torso
        np.r_[np.ones(37), np.full(6, 0.5), np.full(3, 0.2), np.full(21, 0.1)], 21, height=23,
        min_standing_height=1.2),
    'ant': Robot(
        ant_features, None, np.r_[np.ones(13), np.full(3, 0.3), np.full(3, 0.2), np.full(8, 0.1), 1, 1], 8,
        height=2, min_standing_height=0.3),
}


def load_teacher(path):
    """Load the actor of train_expert.py: a function of features (B, F) that returns mean actions (B, A)."""
    names = [(f'actor/{i}/w', f'actor/{i}/b') for i in range(3)]
    arrays = load_arrays(path, sum(names, ()))
    layers = [(arrays[weight], arrays[bias]) for weight, bias in names]

    def teacher(x):
        for weight, bias in layers[:-1]:
            x = x @ weight + bias
            x = x - x.mean(-1, keepdims=True)
            x = np.maximum(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5), 0)
        weight, bias = layers[-1]
        return np.tanh((x @ weight + bias)[:,
                                           :weight.shape[1] // 2])  # the other half are standard deviations

    return teacher


class Walk:
    """A robot in a maze that walks from one random cell to the next."""

    def __init__(self, robot, maze, seed, rows=1500):
        self.robot = ROBOTS[robot]
        dataset = f'{robot}maze-{maze}-navigate-v0'
        self.collector = MazeCollector(CollectConfig(dataset, 'random', None, 0.0, rows, True, seed))
        self.env = self.collector.env
        self.rng = np.random.default_rng(seed)
        self.rows = rows
        np.random.seed(seed)  # mazes draw from numpy's global generator
        self.env.action_space.seed(seed)
        self.env.reset(seed=seed)
        self.reset()
        self.steps_left = int(self.rng.integers(1, rows))  # so that episodes do not begin together

    def reset(self):
        self.observation, _ = self.env.reset(options={'task_info': self.collector.sample_task(self.rng)})
        self.steps_left = self.rows
        self.teacher_acts = True
        self._observe()

    def _observe(self):
        """Set the inputs of the teacher and of the student."""
        self.direction = self.collector.direction_to(self.env.get_xy(), self.env.cur_goal_xy)
        torso = self.env.data.xmat[1].reshape(3, 3)
        self.teacher_features = self.robot.teacher_features(self.observation[2:], torso, self.direction)
        self.student_features = self.robot.inputs(self.observation, self.direction)

    def step(self, action):
        self.observation, _, _, _, info = self.env.step(action)
        if info['success']:
            self.collector.move_goal(self.rng)
        self.steps_left -= 1
        self._observe()

    def standing(self):
        return self.observation[self.robot.height] > self.robot.min_standing_height

    def speed(self):
        """Return the speed of the torso along the direction, in metres per second."""
        return self.env.data.qvel[:2] @ self.direction


def make_student(robot, hidden):
    """Make the network of the expert."""
    layers = [nn.Linear(len(robot.scale), hidden), nn.GELU(approximate='tanh'), nn.Linear(hidden, hidden),
              nn.GELU(approximate='tanh'), nn.Linear(hidden, robot.action_dim), nn.Tanh()]
    return nn.Sequential(*layers)


def export(robot, student, path):
    """Save weights for `collect_maze.load_expert` in float16; the scale of the inputs is folded into w1."""
    first, second, mean = (layer for layer in student if isinstance(layer, nn.Linear))
    arrays = {'w1': first.weight.T * torch.from_numpy(robot.scale)[:, None], 'b1': first.bias,
              'w2': second.weight.T, 'b2': second.bias, 'w_mean': mean.weight.T, 'b_mean': mean.bias}
    arrays = {name: value.detach().numpy().astype(np.float16) for name, value in arrays.items()}
    if robot.ground_vectors is not None:
        arrays['ground_vectors'] = np.array(robot.ground_vectors)
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def distil(flags):
    """Train the student and save it, as an expert and for --resume."""
    for path in (flags.output, flags.student):
        if Path(path).exists() and not flags.resume:
            raise ValueError(f'{path} exists: add --resume, or name other files with --output and --student')
    teacher = load_teacher(flags.teacher)
    torch.set_num_threads(1)
    torch.manual_seed(flags.seed)
    robot = ROBOTS[flags.robot]
    student = make_student(robot, flags.hidden)
    if flags.resume:
        saved = load_checkpoint(flags.student, 'student')
        with prefix_errors(flags.student):
            load_weights(student, saved['network'])
    optimizer = torch.optim.Adam(student.parameters(), lr=flags.lr)

    mazes = ('medium', 'large')
    walks = [Walk(flags.robot, mazes[i % 2], 1000 * flags.seed + i) for i in range(flags.num_envs)]
    n = len(walks)
    capacity = flags.memory // n * n
    inputs = np.zeros((capacity, len(robot.scale)), np.float32)
    labels = np.zeros((capacity, robot.action_dim), np.float32)
    rng = np.random.default_rng(flags.seed)

    # a resumed distillation adds its steps to the curve
    curve = Path(flags.output).with_name(Path(flags.output).stem + '_distil.csv')
    log = MetricsLog(curve, start_step=float('inf') if flags.resume else 0)
    first_step = log.rows[-1]['step'] if log.rows else 0
    meters = Meters()
    steps = 0
    begin = saved = time.perf_counter()

    def save():
        export(robot, student, flags.output)
        save_checkpoint(flags.student, {'kind': 'student', 'network': student.state_dict()})

    try:
        while steps < flags.num_steps:
            # actions of both networks; those of the teacher are the labels
            progress = min(1.0, steps / flags.warm_steps)
            rows = np.arange(steps, steps + n) % capacity
            inputs[rows] = np.stack([walk.student_features for walk in walks])
            labels[rows] = teacher_actions = teacher(np.stack([walk.teacher_features for walk in walks]))
            with torch.no_grad():
                student_actions = student(torch.from_numpy(inputs[rows])).numpy()

            # one step of each walk
            noise = flags.noise * rng.standard_normal(student_actions.shape)
            for i, walk in enumerate(walks):
                if walk.steps_left % SWITCH_INTERVAL == 0:
                    walk.teacher_acts = rng.random() < 1 - (1 - flags.teacher_share) * progress
                action = teacher_actions[i] if walk.teacher_acts else student_actions[i]
                walk.step(np.clip(action + noise[i], -1, 1))

                name = 'teacher' if walk.teacher_acts else 'student'
                meters.add(f'{name}/standing', walk.standing())
                if walk.standing():
                    meters.add(f'{name}/speed', walk.speed())
                if walk.steps_left <= 0:
                    walk.reset()
            steps += n

            # an update
            if steps >= FIRST_UPDATE and steps // n % flags.interval == 0:
                for group in optimizer.param_groups:
                    group['lr'] = flags.lr * max(0.03, 1 - steps / flags.num_steps)
                at = rng.integers(0, min(steps, capacity), flags.batch)
                error = student(torch.from_numpy(inputs[at])) - torch.from_numpy(labels[at])
                loss = error.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                meters.add('loss', loss.detach())

            # log and save
            if steps % LOG_INTERVAL < n:
                row = meters.means() | {'steps_per_second': steps / (time.perf_counter() - begin)}
                log.log(first_step + steps, row)
                text = json.dumps({name: float(f'{value:.3g}') for name, value in row.items()})
                print(f'{steps:,} {text}', flush=True)
            if time.perf_counter() - saved > 120:
                save()
                saved = time.perf_counter()
    finally:  # also of a failed or stopped distillation
        save()


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--robot', choices=sorted(ROBOTS), default='humanoid')
    parser.add_argument('--teacher',
                        help='npz of train_expert.py (default: experts/<robot>/teacher.npz)')
    parser.add_argument('--student', help='weights for --resume (default: student.pth beside the teacher)')
    parser.add_argument('--output', required=True,
                        help='npz for the collector, such as datasets/humanoid_expert.npz')
    parser.add_argument('--num_steps', type=int, default=1_000_000,
                        help='environment steps (default: 1 million)')
    parser.add_argument('--warm_steps', type=int, default=200_000,
                        help='steps until --teacher_share (default: 200,000)')
    parser.add_argument('--teacher_share', type=float, default=0.1,
                        help='final fraction of steps by the teacher (default: 0.1)')
    parser.add_argument('--noise', type=float, default=0.2,
                        help='std of the action noise (default: 0.2, as in the data)')
    parser.add_argument('--num_envs', type=int, default=32, help='number of robots (default: 32)')
    parser.add_argument('--memory', type=int, default=1_500_000,
                        help='capacity in steps (default: 1.5 million)')
    parser.add_argument('--interval', type=int, default=2, help='steps of all robots per update (default: 2)')
    parser.add_argument('--batch', type=int, default=512, help='steps per update (default: 512)')
    parser.add_argument('--hidden', type=int, default=512, help='width of the network (default: 512)')
    parser.add_argument('--lr', type=float, default=1e-3,
                        help='initial learning rate, which falls to a 30th (default: 0.001)')
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    parser.add_argument('--resume', action='store_true', help='start from the weights in --student')
    flags = parser.parse_args(argv)

    flags.teacher = flags.teacher or str(ROOT / 'experts' / flags.robot / 'teacher.npz')
    flags.student = flags.student or str(Path(flags.teacher).with_name('student.pth'))
    return flags


def main():
    distil(parse_args())


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM saves, as Ctrl-C does
    run_main(main)
