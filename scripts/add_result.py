"""Add a finished run to results/runs.csv, or replace the row with its experiment, dataset and seed.

    python scripts/add_result.py main OFFLINE_FOLDER ONLINE_FOLDER
    python scripts/add_result.py main OFFLINE_FOLDER SIMULATOR_LABELS_FOLDER ONLINE_FOLDER
    python scripts/add_result.py expert-noise-0.2 FOLDER          (of scripts/experts/evaluate_expert.py)

The online folder holds the JSON files of evaluate.py; of several, the one with the most episodes counts, and the newest
of equal ones. The config.json of a folder names its half. Files
of flags (`@configs/puzzle.args`) are read from this repository, and their flags enter the row.
`python scripts/make_tables.py` then rewrites the tables.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.flags import run_main, summary  # noqa: E402
from support.metrics import read_csv  # noqa: E402
from support.results import DIGITS, TASKS, Run, add_run, method_flags, read_json  # noqa: E402

# the script that config.json names -> the half of the run
HALVES = {'offline_trainer': 'offline', 'online_trainer': 'online', 'label_with_simulator': 'simulator'}
# what evaluate.py may change about a checkpoint, and its value where it changes nothing
EVALUATION = {'stuck_noise': 0.0}


def last_step(folder, names):
    """Return the step in the last row of the first of these CSV files that the folder has."""
    for path in (folder / name for name in names):
        if path.is_file() and (rows := read_csv(path)):
            return int(rows[-1]['step'])
    raise ValueError(f'{folder} holds no {" or ".join(names) or "CSV file"} with a row')


def read_halves(folders):
    """Return {half: (folder, its config.json)}."""
    halves = {}
    for folder in folders:
        config = read_json(folder / 'config.json')
        script = Path(str((config.get('argv') or [''])[0])).stem
        if script not in HALVES:
            raise ValueError(f'{folder / "config.json"}: not of {", ".join(HALVES)}')
        if not isinstance(config.get('flags'), dict):
            raise ValueError(f'{folder / "config.json"} lacks flags')
        halves[HALVES[script]] = folder, config
    if missing := [half for half in ('offline', 'online') if half not in halves]:
        raise ValueError(f'{", ".join(map(str, folders))}: no {" and no ".join(missing)} run among them')
    return halves


def online_updates(flags, steps):
    """Return the number of online updates: the initial ones, and a share of each step by the agent."""
    return round(flags['initial_updates'] + flags['update_ratio'] * max(0, steps - flags['random_steps']))


def evaluation_flags(metrics, online_flags):
    """Return the flags of evaluate.py that change the checkpoint and are not among its online flags."""
    words = []
    for name, default in EVALUATION.items():
        value = metrics.get(name, default)
        if value != default and f'--{name}' not in online_flags.split():
            words += [f'--{name}', f'{value:g}']
    return ' '.join(words)


def read_evaluation(folder):
    """Return the metrics of the evaluation with the most episodes in a folder, and the path of their JSON file.

    Of equal ones it is the newest. Results are those of the last checkpoint, so best_model.pth does not count.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    paths = sorted(folder.glob('evaluation*.json'), key=lambda path: path.stat().st_mtime, reverse=True)
    if not paths:
        raise ValueError(f'{folder} holds no evaluation*.json; run python evaluate.py --checkpoint '
                         f'{folder / "last.pth"}')
    metrics = {path: read_json(path) for path in paths}
    for path in paths:
        if not isinstance(metrics[path].get('episodes_per_task'), int):
            raise ValueError(f'{path} lacks episodes_per_task')
    of_last = [path for path in paths if Path(str(metrics[path].get('checkpoint'))).name != 'best_model.pth']
    if not of_last:
        raise ValueError(f'{folder}: its evaluations are of best_model.pth; evaluate {folder / "last.pth"}')
    chosen = max(of_last, key=lambda path: metrics[path]['episodes_per_task'])
    return metrics[chosen], chosen


def success_without_plan(metrics, path):
    """Return the success of the same checkpoint under `--compare_set plan=False`, None without it."""
    comparison = metrics.get('comparison')
    if not comparison:
        return None
    if comparison.get('checkpoint') != metrics.get('checkpoint'):
        raise ValueError(f'{path} compares two checkpoints, but runs.csv only has one without its plan')
    return round(metrics['evaluation/overall_success'] - comparison['overall']['difference'], DIGITS)


def make_run(experiment, dataset, seed, metrics, path, **training):
    """Build a row from `metrics` (the JSON file at `path`) and the columns in `training`."""
    texts = ('commit', 'offline_flags', 'simulator_flags', 'online_flags')
    numbers = ('offline_updates', 'online_updates', 'simulator_steps', 'environment_steps', 'labels_r2')
    training = dict.fromkeys(texts, '') | dict.fromkeys(numbers) | training
    try:
        return Run(
            experiment, dataset, seed, **training,
            evaluation_flags=evaluation_flags(metrics, training['online_flags']),
            evaluation_seed=metrics['seed'],
            episodes_per_task=metrics['episodes_per_task'],
            **{f'task{k}': metrics[f'evaluation/task{k}_success'] for k in range(1, TASKS + 1)},
            success=metrics['evaluation/overall_success'],
            success_without_plan=success_without_plan(metrics, path),
        )
    except KeyError as error:
        raise ValueError(f'{path} lacks {error.args[0]}') from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None


def read_run(experiment, folders):
    """Build the row of a finished run from its folders; return it and the path of its evaluation.

    Raises:
        ValueError: names a bad file.
    """
    # the folder of an expert has an evaluation and no config.json
    if len(folders) == 1 and not (folders[0] / 'config.json').is_file():
        metrics, path = read_evaluation(folders[0])
        if 'noise' not in metrics:
            raise ValueError(f'{folders[0] / "config.json"} does not exist')
        return make_run(experiment, metrics['dataset'], 0, metrics, path), path

    halves = read_halves(folders)
    offline, offline_config = halves['offline']
    online, config = halves['online']
    flags = config['flags']
    if missing := {'dataset', 'seed', 'initial_updates', 'update_ratio', 'random_steps'} - flags.keys():
        raise ValueError(f'{online / "config.json"} lacks the flags {", ".join(sorted(missing))}')
    metrics, path = read_evaluation(online)

    steps = last_step(online, ['online.csv'])
    simulator = {}
    if 'simulator' in halves:
        folder, simulator_config = halves['simulator']
        simulator = {
            'simulator_flags': method_flags(simulator_config['argv'], ROOT),
            'simulator_steps': last_step(folder, sorted(file.name for file in folder.glob('*.csv'))),
        }

    r2 = [row['labeler/r2'] for row in read_csv(online / 'online.csv') if 'labeler/r2' in row]
    run = make_run(
        experiment, flags['dataset'], flags['seed'], metrics, path,
        commit=(config.get('git_commit') or '')[:7],
        offline_flags=method_flags(offline_config['argv'], ROOT),
        online_flags=method_flags(config['argv'], ROOT),
        offline_updates=last_step(offline, ['train.csv']),
        online_updates=online_updates(flags, steps),
        environment_steps=steps + simulator.get('simulator_steps', 0),
        labels_r2=round(r2[-1], DIGITS) if r2 else None,
        **simulator,
    )
    return run, path


def main():
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('experiment', help='name of the experiment, as in scripts/reproduce.sh')
    parser.add_argument('folders', nargs='+', type=Path, help='folders of the run')
    parser.add_argument('--csv', default=str(ROOT / 'results' / 'runs.csv'), help='default: %(default)s')
    flags = parser.parse_args()

    run, path = read_run(flags.experiment, flags.folders)
    replaced = add_run(flags.csv, run)
    action = 'replaced in' if replaced else 'added to'
    name = f'{run.experiment}, {run.dataset}, seed {run.seed}'
    episodes = f'{TASKS * run.episodes_per_task} episodes'
    print(f'{name}: {100 * run.success:.1f} % of {episodes} ({path}), {action} {flags.csv}')


if __name__ == '__main__':
    run_main(main)
