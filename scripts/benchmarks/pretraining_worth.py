"""Measure what pretraining is worth: success by coordinates of the state, with and without its objectives.

    python scripts/benchmarks/pretraining_worth.py --seeds 0 1 2
    python scripts/benchmarks/pretraining_worth.py --settings lifted:0 --variants default one_update

Each setting of --observe is trained with each variant of pretraining, offline and online. Runs of the same
seed have the same first random steps and evaluation episodes, so that differences to the default are paired. A
finished run is a row of results.csv in --folder. The same command continues with the missing runs and prints the
table.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

from observing.observation_models import parse_setting  # noqa: E402
from ogbench_utils import BUNDLED_NAME, check_name  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.metrics import curve, read_csv  # noqa: E402
from support.results import add_run, read_rows  # noqa: E402
from support.stats import mean_std, signed  # noqa: E402

SETTINGS = ('full', 'rotated:0', 'lifted:0', 'markers')
DEFAULT = 'default'
VARIANTS = {  # flags of offline_trainer.py; they replace those of the budget
    DEFAULT: (),
    'one_update': ('--num_updates', '1'),
    'no_value': ('--value_weight', '0', '--critic_weight', '0'),  # V's embedding stays random
    'no_infonce': ('--infonce_weight', '0'),
    'no_next_state': ('--state_weight', '0'),
}
BUDGET = {  # flag -> default and help
    'num_updates': (500, 'offline updates'),
    'max_steps': (4000, 'environment steps'),
    'episodes': (50, 'evaluation episodes of each task'),
}


@dataclasses.dataclass
class Row:
    """A finished run; a loss is that of the last validation, None without its objective."""

    dataset: str
    setting: str
    variant: str
    seed: int
    num_updates: int
    max_steps: int
    episodes: int
    value_loss: float | None
    infonce_loss: float | None
    state_loss: float | None
    labels_r2: float | None
    success: float

    @property
    def key(self):
        """Return what identifies a run within one budget."""
        return self.dataset, self.setting, self.variant, self.seed


def train(options, setting, variant, seed):
    """Train offline and online, or continue with it; return the Row.

    Raises:
        ValueError: a training failed; its output is in a log.
    """
    folder = Path(options.folder) / f'{setting.replace(":", "")}-{variant}' / f'seed{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    common = ('--dataset', options.dataset, '--seed', seed)
    run('offline_trainer.py', folder / 'offline', *common, '--observe', setting, '--no-maze_figures',
        '--num_updates', options.num_updates, '--val_interval', max(1, options.num_updates // 5),
        *VARIANTS[variant])
    run('online_trainer.py', folder / 'online', *common,
        '--offline_checkpoint', folder / 'offline' / 'last.pth', '--max_steps', options.max_steps,
        '--final_eval_episodes', options.episodes)

    offline, online = read_csv(folder / 'offline' / 'train.csv'), read_csv(folder / 'online' / 'online.csv')
    losses = {name: last_value(offline, f'validation/{name}')
              for name in ('value_loss', 'infonce_loss', 'state_loss')}
    return Row(options.dataset, setting, variant, seed, **budget_of(options), **losses,
               labels_r2=last_value(online, 'labeler/r2'),
               success=last_value(online, 'evaluation/overall_success'))


def run(script, folder, *flags):
    """Run or resume a trainer in a process with one thread; its output goes to a log beside `folder`.

    Raises:
        ValueError: it failed.
    """
    words = [sys.executable, ROOT / script, *flags, '--save_dir', folder]
    if (folder / 'config.json').exists():
        words.append('--resume')
    log = folder.with_suffix('.log')
    with open(log, 'a', encoding='utf-8') as file:
        done = subprocess.run([*map(str, words)], stdout=file, stderr=file,
                              env={**os.environ, 'OMP_NUM_THREADS': '1'})
    if done.returncode:
        raise ValueError(f'{script} failed; its output is in {log}')


def last_value(rows, name):
    """Return the last value of a column, None if it has none."""
    values = curve(rows, name)[1]
    return float(values[-1]) if len(values) else None


def budget_of(source):
    """Return the budget of a Row or of the flags, a dict of int."""
    return {name: getattr(source, name) for name in BUDGET}


def read_results(path, options):
    """Return the rows of results.csv.

    Raises:
        ValueError: they have another budget.
    """
    rows = read_rows(path, Row) if path.is_file() else []
    for row in rows:
        if budget_of(row) != budget_of(options):
            words = ' '.join(f'--{name} {value}' for name, value in budget_of(row).items())
            raise ValueError(f'{path} has runs with {words}; give these flags or another --folder')
    return rows


def table(rows, settings, variants):
    """Return the lines of a Markdown table: success by default, and paired differences to it in points."""
    others = [variant for variant in variants if variant != DEFAULT]
    lines = ['| ' + ' | '.join(['setting', 'labels R²', 'default', *others]) + ' |',
             '|---' * (3 + len(others)) + '|']
    for setting in settings:
        found = {(row.variant, row.seed): row for row in rows if row.setting == setting}
        default = {seed: row for (variant, seed), row in found.items() if variant == DEFAULT}
        r2 = [row.labels_r2 for row in default.values() if row.labels_r2 is not None]
        cells = [setting, f'{mean_std(r2)[0]:.2f}' if r2 else '–',
                 percent([row.success for row in default.values()])]
        for variant in others:
            differences = [found[variant, seed].success - row.success
                           for seed, row in default.items() if (variant, seed) in found]
            cells.append(percent(differences, signed))
        lines.append('| ' + ' | '.join(cells) + ' |')
    return lines


def percent(values, write='{:.{}f}'.format):
    """Write mean ± standard deviation and number of fractions in percent; '–' for none."""
    if not values:
        return '–'
    mean, std = mean_std([100 * value for value in values])
    return f'{write(mean, 1)} ± {std:.1f} (n = {len(values)})'


def main(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--dataset', default=BUNDLED_NAME, help='dataset (default: %(default)s)')
    parser.add_argument('--settings', nargs='+', default=SETTINGS, help='settings of --observe')
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=list(VARIANTS),
                        help='variants of pretraining')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='paired seeds')
    parser.add_argument('--folder', default='runs/pretraining_worth', help='folder of runs and results.csv')
    for name, (default, text) in BUDGET.items():
        parser.add_argument(f'--{name}', type=int, default=default, help=f'{text} (default: %(default)s)')
    options = parser.parse_args(argv)

    # check the flags
    check_name(options.dataset)
    for setting in options.settings:
        parse_setting(setting)
    if small := next((name for name in BUDGET if getattr(options, name) < 1), None):
        raise ValueError(f'--{small} {getattr(options, small)}: must be at least 1')

    # the missing runs, all variants of a seed in a row
    path = Path(options.folder) / 'results.csv'
    for setting in options.settings:
        for seed in options.seeds:
            for variant in options.variants:
                done = {row.key for row in read_results(path, options)}
                if (options.dataset, setting, variant, seed) in done:
                    continue
                row = train(options, setting, variant, seed)
                add_run(path, row)
                print(f'{setting}, {variant}, seed {seed}: success {row.success:.1%}', flush=True)

    rows = [row for row in read_results(path, options)
            if row.dataset == options.dataset and row.seed in options.seeds]
    print('\n'.join(table(rows, options.settings, options.variants)))


if __name__ == '__main__':
    run_main(main)
