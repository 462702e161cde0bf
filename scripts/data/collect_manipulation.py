"""Episodes of OGBench's data of its robot arm, for collect_dataset.py.

The protocols and the oracles are those of OGBench (Park et al. 2025, arXiv 2410.20092). An episode begins in
a random scene. The environment draws random targets one after the other (a cube to move, a button to press, a
drawer or a window to slide), and an oracle reaches them:

    kind   oracle                           noise
    play   follows a plan of keyframes      on the plan, smooth in time, 0.1 of the scale of each dimension
    noisy  computes each step separately    on the action, its std drawn from U(0, 0.1) for the episode (3 and
                                            10 times that for yaw and gripper); some actions are random

In the play of several cubes, the probability of stacking is drawn for each episode (`STACKING`).
"""

import numpy as np
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from ogbench_utils import make_env

STACKING = {'single': (0, 0), 'double': (0, 0.25), 'triple': (0.05, 0.35), 'quadruple': (0.1, 0.5),
            'octuple': (0, 0.35)}  # range of the probability that a cube goes onto another
SMOOTHING = 0.5  # of the noise on a plan, in steps
MIN_NORM = 0.4  # of the actions of an oracle without a plan
RANDOM_ACTIONS = {'cube': 0.1, 'scene': 0.1, 'puzzle': 0.2}  # their fraction in `noisy` data
NOISE_SCALE = np.array([1, 1, 1, 3, 10])  # of `noisy` data: x, y, z, yaw, gripper


def make_oracles(config, env):
    """Return {kind of target: oracle} for the kind of data of `config`."""
    if config.kind == 'play':
        kinds = {'cube': CubePlanOracle, 'button': ButtonPlanOracle, 'drawer': DrawerPlanOracle,
                 'window': WindowPlanOracle}
        options = {'noise': config.noise, 'noise_smoothing': SMOOTHING}
    else:
        kinds = {'cube': CubeMarkovOracle, 'button': ButtonMarkovOracle, 'drawer': DrawerMarkovOracle,
                 'window': WindowMarkovOracle}
        options = {'min_norm': MIN_NORM}

    if config.family == 'cube':
        return {'cube': kinds['cube'](env=env, **options)}
    if config.family == 'puzzle':
        return {'button': kinds['button'](env=env, gripper_always_closed=True, **options)}
    oracles = {name: kind(env=env, **options) for name, kind in kinds.items()}
    if config.kind == 'noisy':
        oracles['cube'] = CubeMarkovOracle(env=env, max_step=100, **options)
    return oracles


class ManipulationCollector:
    """One environment and its oracles. An episode depends on its arguments and the config only."""

    def __init__(self, config):
        self.config = config
        # unwrapped, without the time limit, which would cut episodes
        self.env = make_env(config.dataset, terminate_at_goal=False, mode='data_collection',
                            disable_env_checker=True).unwrapped
        self.oracles = make_oracles(config, self.env)

    def episode(self, split, number):
        """Collect one episode. Row t of each array has the state at t, or the action taken there.

        As in OGBench, an episode of `scene` is repeated if its cube leaves the view of the camera.

        Args:
            split: 0 for training, 1 for validation.
            number: of the episode in its split.

        Returns:
            dict of float32 arrays: observations (rows, S) and, if the config saves them, actions (rows, 5),
            qpos (rows, Q), qvel (rows, U) and int64 button_states (rows, B), if there are buttons.
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, split, number]))
        global_seed, env_seed = rng.integers(2**31, size=2).tolist()
        np.random.seed(global_seed)  # the oracles draw from it
        while True:
            rows = self.play(rng, env_seed)
            if not self.config.dataset.startswith('scene') or cube_is_visible(rows['qpos']):
                break
            env_seed = None  # the environment's generator continues

        return self.config.select(rows)

    def play(self, rng, env_seed):
        """Play one episode and return all its arrays, as `episode` does."""
        observation, info = self.env.reset(seed=env_seed)
        p_stack = self.stacking_probability(rng)
        noise = rng.uniform(0, self.config.noise)  # for `noisy` data
        oracle = self.oracles[info['privileged/target_task']]
        oracle.reset(observation, info)

        rows = []
        for _ in range(self.config.rows):
            action = self.action(rng, oracle, observation, info, noise)
            next_observation, _, _, _, info = self.env.step(action)
            if oracle.done:
                target_observation, target_info = self.env.set_new_target(p_stack=p_stack)
                oracle = self.oracles[target_info['privileged/target_task']]
                oracle.reset(target_observation, target_info)

            buttons = info.get('prev_button_states', np.zeros(0))
            rows.append((observation, action, info['prev_qpos'], info['prev_qvel'], buttons))
            observation = next_observation

        *columns, buttons = zip(*rows, strict=True)
        keys = ('observations', 'actions', 'qpos', 'qvel')
        arrays = {key: np.asarray(column, np.float32) for key, column in zip(keys, columns, strict=True)}
        if len(buttons[0]):
            arrays['button_states'] = np.asarray(buttons, np.int64)
        return arrays

    def stacking_probability(self, rng):
        """Draw the probability that a cube goes onto another one."""
        size = self.config.dataset.split('-')[1]
        return rng.uniform(*STACKING[size]) if size in STACKING else 0.5

    def action(self, rng, oracle, observation, info, noise):
        """Return the action (5,) in [-1, 1] of the oracle; `noise` is its std in `noisy` data."""
        noisy = self.config.kind == 'noisy'
        if noisy and rng.random() < RANDOM_ACTIONS[self.config.family]:
            return rng.uniform(-1, 1, len(NOISE_SCALE))

        action = np.array(oracle.select_action(observation, info))
        if noisy:
            action = action + noise * NOISE_SCALE * rng.standard_normal(len(NOISE_SCALE))
        return np.clip(action, -1, 1)


def cube_is_visible(qpos):
    """Return whether the cube of `scene` stays in the view of the camera, given qpos (rows, Q).

    The cube may lie further left if it lies in the drawer.
    """
    y = qpos[:, 15]
    z = qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool(np.all((y < 0.29) & ((y > -0.3) | in_drawer)))
