"""Train the expert that collects data: a robot that walks where it is told, by PPO (Schulman et al. 2017).

    python scripts/train_expert.py --robot humanoid --num_steps 20000000
    python scripts/train_expert.py --robot humanoid --num_steps 40000000 --resume

A tool beside OPSO, not a part of it. The robots are those of `ogbench.online_locomotion`. Unlike an off-policy learner,
PPO keeps no replay: the checkpoint is a few megabytes, so that a run can go on in another session or elsewhere.

Why the reward is not OGBench's own, stand * (1 + 100 dxy . direction): it is nearly zero on the ground, where every
episode of the humanoid begins. Ours also pays for the height of the head, so that getting up has a gradient. What a
policy is judged by stays OGBench's: `scripts/evaluate_expert.py`, success in the maze.

Files in results/experts/<robot>/: checkpoint.pth (all that --resume needs) and curve.csv; with --export also the
weights for the collector (datasets/<robot>_expert.npz).
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # small networks: a second thread costs more than it gives

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.files import load_checkpoint, save_checkpoint, write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import MetricsLog  # noqa: E402

STANDING_HEAD = 1.4  # metres; OGBench's and dm_control's figure for a humanoid that stands
FALLEN_HEAD = 0.8  # metres; below it a walk that began upright has ended
HIDDEN = 256


# ------------------------------------------------------------------------------------------------------ robots
class HumanoidTask:
    """OGBench's humanoid, told where to walk. `begins_standing`: its episodes begin upright and end in a fall; the
    others begin as in the maze, in a random pose in the air, and go on whatever happens.

    The choice is made once for each robot and not at each episode: a walk that ends after 20 decisions and a night on
    the ground of 300 would leave one decision in sixteen to the walk."""

    action_repeat = 2
    episode_decisions = 300
    resample_decisions = (40, 160)  # a direction holds for 2 to 8 seconds
    privileged_dim = 2

    def __init__(self, seed, begins_standing):
        from ogbench.online_locomotion.humanoid import HumanoidEnv

        self.env = HumanoidEnv()
        self.env.reset(seed=seed)
        self.rng = np.random.default_rng(seed)
        self.begins_standing = begins_standing

    def reset(self):
        if self.begins_standing:
            qpos = self.env.init_qpos.copy()
            qpos[2] = 1.3
            qpos[3:7] = yaw_quaternion(self.rng.uniform(-np.pi, np.pi))
            qpos[7:] += self.rng.uniform(-0.1, 0.1, len(qpos) - 7)
            qvel = 0.1 * self.rng.standard_normal(self.env.model.nv)
            self.env.set_state(qpos, qvel)
        else:
            self.env.reset()

        return self.env._get_obs()

    def privileged(self, direction):
        """What the critic may know and the policy may not: where the torso faces, seen from the direction (2,)."""
        facing = self.env.data.xmat[1].reshape(3, 3)[:2, 0]
        return np.array([facing @ direction, facing[0] * direction[1] - facing[1] * direction[0]])

    def reward(self, direction, action):
        """Of one control step, about 0 on the ground, 0.5 standing and 2 walking at 1.5 m/s."""
        data = self.env.data
        height = np.clip(data.xpos[2, 2] / STANDING_HEAD, 0.0, 1.0)
        upright = 0.5 + 0.5 * data.xmat[1, 8]
        standing = np.clip((height - 0.7) / 0.3, 0.0, 1.0) * upright

        speed = np.clip(data.sensordata[:2] @ direction, -1.0, 1.5)
        effort = np.square(action).mean()
        return 0.3 * height * upright + 0.2 * standing + standing * speed - 0.05 * effort

    def fallen(self):
        return self.begins_standing and self.env.data.xpos[2, 2] < FALLEN_HEAD

    def standing(self):
        return float(self.env.data.xpos[2, 2] > 1.2)

    def velocity(self):
        return self.env.data.sensordata[:2]


class AntTask:
    """OGBench's ant, told where to walk. It is pushed now and then, and an episode that ended on its back would teach
    nothing more: it ends there."""

    action_repeat = 1
    episode_decisions = 500
    resample_decisions = (20, 100)
    privileged_dim = 0

    def __init__(self, seed, begins_standing):
        from ogbench.online_locomotion.ant import AntEnv

        self.env = AntEnv(terminate_when_unhealthy=False)
        self.env.reset(seed=seed)
        self.rng = np.random.default_rng(seed)

    def reset(self):
        return self.env.reset()[0]

    def privileged(self, direction):
        return np.zeros(0)

    def reward(self, direction, action):
        if self.rng.random() < 0.02:  # a push, as from a wall that was not seen
            velocity = self.env.data.qvel.copy()
            velocity[:2] += self.rng.normal(0.0, 1.0, 2)
            self.env.set_state(self.env.data.qpos, velocity)

        speed = np.clip(self.velocity() @ direction, -2.0, 4.0)
        return speed + 0.5 * self.standing() - 0.05 * np.square(action).mean()

    def fallen(self):
        return self._up() < 0

    def standing(self):
        return float(self._up() > 0.5)

    def _up(self):
        x, y = self.env.data.qpos[4:6]
        return 1 - 2 * (x * x + y * y)

    def velocity(self):
        return self.env.data.qvel[:2]


TASKS = {'humanoid': HumanoidTask, 'ant': AntTask}


def yaw_quaternion(angle):
    """Rotation about the vertical axis (4,), MuJoCo's order (w, x, y, z)."""
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])


class DirectedRobot:
    """One robot with a direction that changes. `step` repeats an action and restarts a finished episode itself."""

    def __init__(self, robot, seed, begins_standing=True):
        self.task = TASKS[robot](seed, begins_standing)
        self.rng = np.random.default_rng([seed, 1])
        self.reset()

    def reset(self):
        self.state = self.task.reset()
        self.decision = 0
        self._new_direction()
        return self.observation()

    def _new_direction(self):
        angle = self.rng.uniform(-np.pi, np.pi)
        self.direction = np.array([np.cos(angle), np.sin(angle)])
        self.next_direction = self.decision + self.rng.integers(*self.task.resample_decisions)

    def observation(self):
        """(S + 2,): the state without x, y, and the unit direction."""
        return np.concatenate([self.state, self.direction])

    def step(self, action):
        """-> (reward, ended, fell): the mean reward over the repeats; `fell` tells a real end from a time limit."""
        total = 0.0
        for _ in range(self.task.action_repeat):
            self.state = self.task.env.step(action)[0]
            total += self.task.reward(self.direction, action)

        self.decision += 1
        if self.decision == self.next_direction:
            self._new_direction()

        fell = self.task.fallen()
        ended = fell or self.decision >= self.task.episode_decisions
        return total / self.task.action_repeat, ended, fell


# ------------------------------------------------------------------------------------------------------ learner
class Normalizer:
    """Running mean and variance of vectors (Welford), kept as float64 arrays (D,)."""

    def __init__(self, size):
        self.mean = np.zeros(size)
        self.variance = np.ones(size)
        self.count = 1e-4

    def update(self, rows):
        count = len(rows)
        delta = rows.mean(0) - self.mean
        total = self.count + count

        between = np.square(delta) * self.count * count / total
        self.variance = (self.variance * self.count + rows.var(0) * count + between) / total
        self.mean = self.mean + delta * count / total
        self.count = total

    def __call__(self, rows):
        return np.clip((rows - self.mean) / np.sqrt(self.variance + 1e-6), -10, 10).astype(np.float32)

    def state_dict(self):
        return {'mean': torch.from_numpy(self.mean), 'variance': torch.from_numpy(self.variance),
                'count': float(self.count)}

    def load_state_dict(self, state):
        self.mean = state['mean'].numpy()
        self.variance = state['variance'].numpy()
        self.count = state['count']


def network(sizes, last_gain):
    """Linear layers with GELU between them, orthogonal weights."""
    layers = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        last = i == len(sizes) - 2
        linear = nn.Linear(n_in, n_out)
        nn.init.orthogonal_(linear.weight, last_gain if last else 2 ** 0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.GELU(approximate='tanh')]
    return nn.Sequential(*layers)


class Policy(nn.Module):
    """Gaussian over actions: mean tanh(net(x)), one standard deviation per action. `value` is the critic, which sees
    the privileged numbers as well."""

    def __init__(self, input_dim, privileged_dim, action_dim):
        super().__init__()
        self.net = network([input_dim, HIDDEN, HIDDEN, action_dim], 0.01)
        self.value = network([input_dim + privileged_dim, HIDDEN, HIDDEN, 1], 1.0)
        self.log_std = nn.Parameter(torch.full((action_dim,), -0.7))

    def distribution(self, x):
        return torch.distributions.Normal(torch.tanh(self.net(x)), self.log_std.clamp(-1.8, 0.0).exp())


@dataclass
class Rollout:
    """What one iteration collected: arrays (T, N, ...) of T decisions in N robots."""

    inputs: np.ndarray  # (T, N, S + 2) normalised
    privileged: np.ndarray  # (T, N, P)
    actions: np.ndarray  # (T, N, A)
    log_probs: np.ndarray  # (T, N)
    values: np.ndarray  # (T + 1, N)
    rewards: np.ndarray  # (T, N)
    ended: np.ndarray  # (T, N) bool
    standing: float  # share of the decisions
    speed: float  # metres a second along the direction, mean

    def advantages(self, discount, trace):
        """Generalised advantage estimation (Schulman et al. 2016) -> (advantages, returns), both (T, N)."""
        advantages = np.zeros_like(self.rewards)
        running = np.zeros(self.rewards.shape[1])

        for t in reversed(range(len(self.rewards))):
            goes_on = 1.0 - self.ended[t]
            error = self.rewards[t] + discount * goes_on * self.values[t + 1] - self.values[t]
            running = error + discount * trace * goes_on * running
            advantages[t] = running

        return advantages, advantages + self.values[:-1]


class Learner:
    """PPO with a learning rate that follows the KL divergence. Holds everything that a checkpoint needs."""

    def __init__(self, robot, flags):
        self.flags = flags
        standing = round(flags.standing_share * flags.num_envs)
        self.robots = [DirectedRobot(robot, 1000 * flags.seed + i, i < standing) for i in range(flags.num_envs)]
        task = self.robots[0].task
        self.privileged_dim = task.privileged_dim
        input_dim = len(self.robots[0].observation())
        action_dim = task.env.action_space.shape[0]

        torch.manual_seed(flags.seed)
        self.policy = Policy(input_dim, self.privileged_dim, action_dim)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=flags.lr, eps=1e-5)
        self.normalizer = Normalizer(input_dim)
        self.steps = 0

    def observe(self):
        """-> raw observations (N, S + 2) and privileged numbers (N, P) of all robots."""
        raw = np.stack([robot.observation() for robot in self.robots])
        privileged = np.stack([robot.task.privileged(robot.direction) for robot in self.robots])
        return raw, privileged.astype(np.float32)

    @torch.no_grad()
    def _values(self, inputs, privileged):
        x = torch.from_numpy(np.concatenate([inputs, privileged], -1))
        return self.policy.value(x).squeeze(-1).numpy()

    @torch.no_grad()
    def collect(self):
        """`horizon` decisions of every robot -> Rollout."""
        flags = self.flags
        columns = {name: [] for name in ('inputs', 'privileged', 'actions', 'log_probs', 'values', 'rewards', 'ended')}
        standing = []
        speed = []
        raw_rows = []

        for _ in range(flags.horizon):
            raw, privileged = self.observe()
            raw_rows.append(raw)
            inputs = self.normalizer(raw)
            distribution = self.policy.distribution(torch.from_numpy(inputs))
            actions = distribution.sample()

            rewards = np.zeros(len(self.robots), np.float32)
            ended = np.zeros(len(self.robots), bool)
            executed = actions.clamp(-1, 1).numpy()
            for i, robot in enumerate(self.robots):
                rewards[i], ended[i], fell = robot.step(executed[i])
                standing.append(robot.task.standing())
                speed.append(robot.task.velocity() @ robot.direction)

                if ended[i]:
                    if not fell:  # a time limit is no end of the task: its value goes on
                        last = self.normalizer(robot.observation()[None])
                        seen = robot.task.privileged(robot.direction)[None].astype(np.float32)
                        rewards[i] += flags.discount * self._values(last, seen)[0]
                    robot.reset()

            columns['inputs'].append(inputs)
            columns['privileged'].append(privileged)
            columns['actions'].append(actions.numpy())
            columns['log_probs'].append(distribution.log_prob(actions).sum(-1).numpy())
            columns['values'].append(self._values(inputs, privileged))
            columns['rewards'].append(rewards)
            columns['ended'].append(ended)

        raw, privileged = self.observe()
        columns['values'].append(self._values(self.normalizer(raw), privileged))
        self.normalizer.update(np.concatenate(raw_rows))
        self.steps += flags.horizon * len(self.robots) * self.robots[0].task.action_repeat

        arrays = {name: np.stack(rows) for name, rows in columns.items()}
        return Rollout(**arrays, standing=float(np.mean(standing)), speed=float(np.mean(speed)))

    def update(self, rollout):
        """Several epochs of clipped policy gradients over one rollout -> dict of numbers for the curve."""
        flags = self.flags
        advantages, returns = rollout.advantages(flags.discount, flags.trace)
        inputs, privileged, actions, log_probs = (
            torch.from_numpy(array.reshape(-1, *array.shape[2:]))
            for array in (rollout.inputs, rollout.privileged, rollout.actions, rollout.log_probs))
        advantages, returns = (torch.from_numpy(array.ravel().astype(np.float32)) for array in (advantages, returns))
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        everything = torch.cat([inputs, privileged], -1)

        divergences = []
        for _ in range(flags.epochs):
            for rows in torch.randperm(len(inputs)).split(flags.minibatch):
                distribution = self.policy.distribution(inputs[rows])
                log_ratio = distribution.log_prob(actions[rows]).sum(-1) - log_probs[rows]
                ratio = log_ratio.exp()
                clipped = ratio.clamp(1 - flags.clip, 1 + flags.clip)
                policy_loss = -torch.min(ratio * advantages[rows], clipped * advantages[rows]).mean()

                value_loss = (self.policy.value(everything[rows]).squeeze(-1) - returns[rows]).square().mean()
                entropy = distribution.entropy().sum(-1).mean()
                loss = policy_loss + 0.5 * value_loss - flags.entropy * entropy

                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
                self.optimizer.step()
                divergences.append(float((ratio - 1 - log_ratio).mean().detach()))

        divergence = float(np.mean(divergences))
        self._adapt_learning_rate(divergence)
        explained = 1 - float((returns - torch.from_numpy(rollout.values[:-1].ravel())).var() / returns.var())
        return {'reward': float(rollout.rewards.mean()), 'standing': rollout.standing, 'speed': rollout.speed,
                'ended': float(rollout.ended.mean()), 'explained_variance': explained, 'divergence': divergence,
                'lr': self.optimizer.param_groups[0]['lr'], 'value_loss': float(value_loss.detach()),
                'std': float(self.policy.log_std.detach().exp().mean())}

    def _adapt_learning_rate(self, divergence):
        group = self.optimizer.param_groups[0]
        if divergence > 2 * self.flags.target_divergence:
            group['lr'] = max(group['lr'] / 1.5, 1e-5)
        elif divergence < 0.5 * self.flags.target_divergence:
            group['lr'] = min(group['lr'] * 1.5, 1e-3)

    def state_dict(self):
        return {'policy': self.policy.state_dict(), 'optimizer': self.optimizer.state_dict(),
                'normalizer': self.normalizer.state_dict(), 'steps': self.steps}

    def load_state_dict(self, state):
        self.policy.load_state_dict(state['policy'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.normalizer.load_state_dict(state['normalizer'])
        self.steps = state['steps']


def export(learner, path):
    """The policy's mean as the collector reads it, w1 b1 w2 b2 w_mean b_mean, float32; the normalisation of inputs is
    folded into w1 and b1."""
    first, second, mean = (layer for layer in learner.policy.net if isinstance(layer, nn.Linear))
    scale = 1 / np.sqrt(learner.normalizer.variance + 1e-6)
    w1 = first.weight.detach().numpy().T * scale[:, None]
    b1 = first.bias.detach().numpy() - learner.normalizer.mean @ w1

    arrays = {'w1': w1, 'b1': b1, 'w2': second.weight.detach().numpy().T, 'b2': second.bias.detach().numpy(),
              'w_mean': mean.weight.detach().numpy().T, 'b_mean': mean.bias.detach().numpy()}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


# ------------------------------------------------------------------------------------------------------ command
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--robot', choices=sorted(TASKS), default='humanoid')
    parser.add_argument('--num_steps', type=int, default=20_000_000, help='control steps in all (default: 20 million)')
    parser.add_argument('--num_envs', type=int, default=32, help='robots side by side (default: 32)')
    parser.add_argument('--standing_share', type=float, default=0.85,
                        help='share of the humanoids whose episodes begin upright (default: 0.85)')
    parser.add_argument('--horizon', type=int, default=128, help='decisions of each between updates (default: 128)')
    parser.add_argument('--minibatch', type=int, default=1024, help='decisions in a gradient step (default: 1024)')
    parser.add_argument('--epochs', type=int, default=5, help='passes over what was collected (default: 5)')
    parser.add_argument('--lr', type=float, default=3e-4, help="Adam's first learning rate (default: 3e-4)")
    parser.add_argument('--target_divergence', type=float, default=0.012, help='KL that the learning rate aims at')
    parser.add_argument('--discount', type=float, default=0.985, help='per decision (default: 0.985)')
    parser.add_argument('--trace', type=float, default=0.95, help='lambda of the advantages (default: 0.95)')
    parser.add_argument('--clip', type=float, default=0.2, help='bound on the change of a probability (default: 0.2)')
    parser.add_argument('--entropy', type=float, default=1e-3, help='weight of the entropy (default: 0.001)')
    parser.add_argument('--save_interval', type=int, default=50, help='iterations between checkpoints (default: 50)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output_dir', default='', help='default: results/experts/<robot>')
    parser.add_argument('--resume', action='store_true', help='go on from checkpoint.pth in the output folder')
    parser.add_argument('--export', default='', help='npz file for the collector, written at every checkpoint')
    return parser.parse_args(argv)


def train(flags):
    """Collect and learn until `num_steps` -> Learner."""
    folder = Path(flags.output_dir or ROOT / 'results' / 'experts' / flags.robot)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'checkpoint.pth'
    if path.exists() and not flags.resume:
        raise ValueError(f'{path} exists: add --resume, or name another --output_dir')

    learner = Learner(flags.robot, flags)
    if flags.resume:
        saved = load_checkpoint(path, 'expert')
        if saved['robot'] != flags.robot:
            raise ValueError(f'{path} is of the {saved["robot"]}, --robot is {flags.robot}')
        learner.load_state_dict(saved['learner'])

    def save():
        save_checkpoint(path, {'kind': 'expert', 'robot': flags.robot, 'learner': learner.state_dict()})
        if flags.export:
            export(learner, Path(flags.export))

    log = MetricsLog(folder / 'curve.csv', learner.steps)
    iteration = 0
    try:
        while learner.steps < flags.num_steps:
            begin = time.perf_counter()
            before = learner.steps
            numbers = learner.update(learner.collect())
            numbers['steps_per_second'] = (learner.steps - before) / (time.perf_counter() - begin)

            iteration += 1
            if iteration % 10 == 1:
                log.log(learner.steps, numbers)
                print(f'{learner.steps:,} ' + ' '.join(f'{name} {value:.3g}' for name, value in numbers.items()),
                      flush=True)
            if iteration % flags.save_interval == 0:
                save()
    finally:
        save()
    return learner


def main():
    train(parse_args())


if __name__ == '__main__':
    run_main(main)
