"""Train HIQL (Park et al. 2023, OGBench's code) on our files, with all action labels, on one CPU core.

    git clone https://github.com/seohongpark/ogbench && git -C ogbench checkout 1d41409
    pip install ogbench==1.2.2 jax==0.10.2 flax==0.12.8 optax==0.2.8 distrax==0.1.9 ml_collections
    python scripts/data/collect_dataset.py --dataset antmaze-large-navigate-v0 --num_episodes 500 \
        --num_val_episodes 50 --seed 1 --no-state_only --output_dir data_actions
    python scripts/baselines/hiql.py --impls ogbench/impls --data_dir data_actions \
        --dataset antmaze-large-navigate-v0 --output runs/hiql

The script is a loop around OGBench's agent, sampler and evaluation. It differs from OGBench's in two points: it
resumes, and the new parameters reuse the memory of the old ones. It needs a virtual environment of its own.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'

EXPLORE = {'actor_p_randomgoal': 1.0, 'actor_p_trajgoal': 0.0, 'high_alpha': 10.0, 'low_alpha': 10.0}
STITCH = {'actor_p_randomgoal': 0.5, 'actor_p_trajgoal': 0.5}
SAVE_INTERVAL = 10_000


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or ' ').splitlines()[0])
    parser.add_argument('--impls', required=True, help="folder impls/ of OGBench's repository")
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--data_dir', required=True, help='folder with <dataset>.npz, which has actions')
    parser.add_argument('--output', required=True, help='folder for the checkpoint and evaluations.jsonl')
    parser.add_argument('--batch_size', type=int, default=64, help='theirs: 1024 (default: %(default)s)')
    parser.add_argument('--width', type=int, default=512, help='of each layer; theirs: 512 (default: %(default)s)')
    parser.add_argument('--num_updates', type=int, default=200_000, help='theirs: 1,000,000 (default: %(default)s)')
    parser.add_argument('--eval_interval', type=int, default=50_000)
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args()

    sys.path.insert(0, flags.impls)
    import jax
    import numpy as np
    import ogbench
    from agents.hiql import HIQLAgent, get_config
    from flax.serialization import from_state_dict, msgpack_restore, msgpack_serialize, to_state_dict
    from ogbench.utils import load_dataset
    from utils.datasets import Dataset, HGCDataset
    from utils.evaluation import evaluate

    config = get_config()
    config.batch_size = flags.batch_size
    config.value_hidden_dims = config.actor_hidden_dims = (flags.width,) * 3
    if 'explore' in flags.dataset:
        config.update(EXPLORE)
    elif 'stitch' in flags.dataset:
        config.update(STITCH)

    env = ogbench.make_env_and_datasets(flags.dataset, env_only=True)
    file = Path(flags.data_dir) / f'{flags.dataset}.npz'
    arrays = load_dataset(str(file), ob_dtype=np.float32, action_dtype=np.float32, compact_dataset=True)
    data = HGCDataset(Dataset.create(**arrays), config)
    example = data.sample(1)
    agent = HIQLAgent.create(flags.seed, example['observations'], example['actions'], config)

    output = Path(flags.output)
    output.mkdir(parents=True, exist_ok=True)
    last = output / 'last.msgpack'
    start = 0
    if last.exists():
        saved = msgpack_restore(last.read_bytes())
        start = saved['updates']
        agent = from_state_dict(agent, saved['agent'])
    np.random.seed(flags.seed + start)  # their sampler draws from the global generator

    # the target begins as the value's very arrays, which cannot be given away twice
    agent = jax.tree_util.tree_map(lambda leaf: leaf.copy() if hasattr(leaf, 'copy') else leaf, agent)
    update = jax.jit(lambda agent, batch: agent.update(batch)[0], donate_argnums=0)

    def save(updates):
        state = to_state_dict(jax.device_get(agent))
        temporary = output / 'last.tmp'
        temporary.write_bytes(msgpack_serialize({'updates': updates, 'agent': state}))
        temporary.replace(last)

    def measure(updates, episodes):
        row = {'updates': updates, 'episodes_per_task': episodes, 'seconds': round(time.time() - begin)}
        for task in range(1, 6):
            np.random.seed(1000 + task)
            info, _, _ = evaluate(agent=agent, env=env, task_id=task, config=config, num_eval_episodes=episodes,
                                  num_video_episodes=0)
            row[f'task{task}'] = float(info['success'])
        row['overall'] = float(np.mean([row[f'task{task}'] for task in range(1, 6)]))
        with open(output / 'evaluations.jsonl', 'a', encoding='utf-8') as lines:
            lines.write(json.dumps(row) + '\n')
        print(json.dumps(row), flush=True)

    begin = time.time()
    for i in range(start + 1, flags.num_updates + 1):
        agent = update(agent, data.sample(flags.batch_size))
        if i % SAVE_INTERVAL == 0 or i == flags.num_updates:
            save(i)
        if i % flags.eval_interval == 0 or i == flags.num_updates:
            measure(i, 50 if i == flags.num_updates else 10)


if __name__ == '__main__':
    main()
