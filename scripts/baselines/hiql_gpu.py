"""HIQL on a GPU: several mazes at once, and from inferred labels beside the true ones. See hiql.py for the CPU.

    python scripts/baselines/hiql_gpu.py --impls ogbench/impls --data medium.npz large.npz explore.npz --explore 0 0 1 \
        --output runs/hiql_gpu --num_updates 200000 --seconds 400

Agent and losses are OGBench's (impls/agents/hiql.py at 1d41409), with their widths and batch. Ours: the sampler, theirs
written for arrays on the GPU; the agents of all mazes are updated in one call (`jax.vmap`); and beside the low-level
actor that learns from true actions, more of them learn from other labels of the same states. V and the high-level actor
see no action, so that all of these share them.

Each file has `observations` (N, S), `terminals` (N,) and `actions` (K, N, A), the true ones first. Writes
<name>_<updates>.npz with the weights of the actors, which hiql_gpu_evaluate.py reads, and losses to the screen.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

EXPLORE_ALPHA = 10.0
UPDATES_IN_A_CALL = 250


def load(paths):
    """-> dict of arrays (M, ...), a row for each maze, padded to the longest."""
    import jax.numpy as jnp
    import numpy as np

    mazes = []
    for path in paths:
        file = np.load(path, allow_pickle=False)
        ends = np.flatnonzero(file['terminals'])
        rows = np.arange(ends[-1] + 1)
        mazes.append({
            'observations': file['observations'][:len(rows)],
            'actions': file['actions'][:, :len(rows)].astype(np.float32).swapaxes(0, 1),
            'final': ends[np.searchsorted(ends, rows)].astype(np.int32),
            'valid': np.flatnonzero(~file['terminals'][:len(rows)].astype(bool)).astype(np.int32),
        })

    arrays = {'count': jnp.array([len(maze['valid']) for maze in mazes], jnp.int32)}
    for key in mazes[0]:
        longest = max(len(maze[key]) for maze in mazes)
        padded = [np.concatenate([maze[key], np.repeat(maze[key][-1:], longest - len(maze[key]), 0)]) for maze in mazes]
        arrays[key] = jnp.array(np.stack(padded))
    return arrays


def sample(maze, key, config, random_goals, batch_size):
    """A batch as OGBench's HGCDataset draws it; `maze`: arrays of one maze, random_goals: share of the high level's."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, 8)
    uniform = functools.partial(jax.random.uniform, shape=(batch_size,))

    def anywhere(key):
        return maze['valid'][jax.random.randint(key, (batch_size,), 0, maze['count'])]

    rows = anywhere(keys[0])
    final = maze['final'][rows]

    offsets = jnp.ceil(jnp.log1p(-uniform(keys[1])) / jnp.log(config['discount'])).astype(jnp.int32)
    later = jnp.minimum(rows + jnp.maximum(offsets, 1), final)
    along = config['value_p_trajgoal'] / (1 - config['value_p_curgoal'])
    value_goals = jnp.where(uniform(keys[2]) < along, later, anywhere(keys[3]))
    value_goals = jnp.where(uniform(keys[4]) < config['value_p_curgoal'], rows, value_goals)

    share = uniform(keys[5])
    future = jnp.round(jnp.minimum(rows + 1, final) * share + final * (1 - share)).astype(jnp.int32)
    ahead = jnp.minimum(rows + config['subgoal_steps'], final)
    is_random = uniform(keys[6]) < random_goals
    high_goals = jnp.where(is_random, anywhere(keys[7]), future)
    high_targets = jnp.where(is_random, ahead, jnp.minimum(rows + config['subgoal_steps'], future))

    reached = (rows == value_goals).astype(jnp.float32)
    states = maze['observations']
    return {
        'observations': states[rows],
        'next_observations': states[jnp.minimum(rows + 1, len(states) - 1)],
        'value_goals': states[value_goals],
        'low_actor_goals': states[ahead],
        'high_actor_goals': states[high_goals],
        'high_actor_targets': states[high_targets],
        'masks': 1 - reached,
        'rewards': reached - 1,
        'all_actions': maze['actions'][rows].swapaxes(0, 1),  # (K, B, A)
    }


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or ' ').splitlines()[0])
    parser.add_argument('--impls', required=True, help="folder impls/ of OGBench's repository")
    parser.add_argument('--data', nargs='+', required=True)
    parser.add_argument('--explore', nargs='+', type=int, required=True, help='1 for data of explore, else 0')
    parser.add_argument('--output', required=True)
    parser.add_argument('--num_updates', type=int, default=200_000)
    parser.add_argument('--save_interval', type=int, default=100_000)
    parser.add_argument('--seconds', type=float, default=1e9, help='stop then, whatever --num_updates says')
    parser.add_argument('--batch_size', type=int, default=1024)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args()
    begin = time.time()

    sys.path.insert(0, flags.impls)
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from agents.hiql import HIQLAgent, get_config
    from flax.core import FrozenDict

    config = get_config()
    config.value_hidden_dims = config.actor_hidden_dims = (flags.width,) * 3
    arrays = load(flags.data)
    explore = jnp.array(flags.explore, jnp.float32)
    alphas = jnp.where(explore > 0, EXPLORE_ALPHA, config.low_alpha)
    n_mazes, _, n_labels, _ = arrays['actions'].shape
    optimizer = optax.adam(config.lr)

    agent = HIQLAgent.create(flags.seed, arrays['observations'][0, :1], arrays['actions'][0, :1, 0], config)
    agents = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], n_mazes, 0), agent)
    one = agents.network.params['modules_low_actor']
    others = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], n_labels - 1, 1), one)  # (M, K - 1, ...)
    state = {'agent': agents, 'others': others,
             'optimizer': jax.vmap(jax.vmap(optimizer.init))(others)}

    def update(state, maze, random_goals, alpha, key):
        """One update of the agent of one maze and of its other low-level actors."""
        batch = sample(maze, key, config, random_goals, flags.batch_size)
        labels = batch.pop('all_actions')
        settings = FrozenDict(**{**config, 'low_alpha': alpha, 'high_alpha': alpha})
        agent = state['agent'].replace(config=settings)
        batch['actions'] = labels[0]

        def loss(params):
            value, info = agent.value_loss(batch, params)
            low, low_info = agent.low_actor_loss(batch, params)
            high, high_info = agent.high_actor_loss(batch, params)
            told = {'value': value, 'v': info['v_mean'], 'low mse': low_info['mse'], 'high mse': high_info['mse']}
            return value + low + high, told

        network, info = agent.network.apply_loss_fn(loss_fn=loss)
        agent.target_update(network, 'value')

        def other_loss(params, actions):
            params = {**agent.network.params, 'modules_low_actor': params}
            return agent.low_actor_loss({**batch, 'actions': actions}, params)[0]

        gradients = jax.vmap(jax.grad(other_loss))(state['others'], labels[1:])
        updates, optimizer_state = jax.vmap(optimizer.update)(gradients, state['optimizer'])
        told = {key: info[key] for key in ('value', 'v', 'low mse', 'high mse')}
        return {'agent': state['agent'].replace(network=network),
                'others': optax.apply_updates(state['others'], updates), 'optimizer': optimizer_state}, told

    @functools.partial(jax.jit, donate_argnums=0)
    def many(state, key):
        def body(state, key):
            keys = jax.random.split(key, n_mazes)
            return jax.vmap(update)(state, arrays, explore, alphas, keys)

        state, info = jax.lax.scan(body, state, jax.random.split(key, UPDATES_IN_A_CALL))
        return state, jax.tree.map(lambda values: values.mean(0), info)

    def save(done):
        params = jax.device_get(state['agent'].network.params)
        others = jax.device_get(state['others'])
        for m, path in enumerate(flags.data):
            actors = {'high': (params['modules_high_actor'], m), 'low0': (params['modules_low_actor'], m)}
            actors |= {f'low{k}': (others, (m, k - 1)) for k in range(1, n_labels)}
            told = {}
            for name, (tree, pick) in actors.items():
                for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    told[name + jax.tree_util.keystr(place)] = leaf[pick].astype(np.float16)
            np.savez(Path(flags.output) / f'{Path(path).stem}_{done}.npz', **told)

    Path(flags.output).mkdir(parents=True, exist_ok=True)
    done = 0
    while done < flags.num_updates and time.time() - begin < flags.seconds:
        state, info = many(state, jax.random.PRNGKey(flags.seed * 1_000_003 + done))
        done += UPDATES_IN_A_CALL
        if done % (20 * UPDATES_IN_A_CALL) == 0 or done == UPDATES_IN_A_CALL:
            text = ', '.join(f'{key} {np.round(np.array(value), 3).tolist()}' for key, value in info.items())
            print(f'{done} updates, {time.time() - begin:.0f} s: {text}', flush=True)
        if done % flags.save_interval == 0:
            save(done)
    save(done)
    print(f'{done} updates, {time.time() - begin:.0f} s, {jax.devices()[0].device_kind}')


if __name__ == '__main__':
    main()
