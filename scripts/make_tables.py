"""Write the result tables from the files under results/, so that they cannot drift: the main one into README.md and
README.ko.md, the others into results/README.md, and those of former versions into results/before/README.md.

    python scripts/make_tables.py            rewrite the tables and assets/success_by_{steps,losses}.png
    python scripts/make_tables.py --check    change nothing; exit code 1 if the tables are not up to date

Reads results/<experiment>/<dataset>/seed<k>/: evaluation.json (needed for a row), offline.csv, online.csv, and the
flags in config_offline.json and config_online.json. `main` makes the main table, with before/network-labels for
datasets that it has no run of; `steps-<n>`, of n environment steps, stands beside `main` in the second table and in the
picture; baselines/hiql_gpu/<dataset>/ is HIQL on the same data, from the labels of as many steps or from true ones.
`expert-noise-<noise>[-<which>]` makes the table of the demonstrators, and with `true-actions` and HIQL one of what
labels cost. `lost-<P>-<what fills in>`, of --observe dropped:P, make a table of their own and the other picture.
`parts-<what is other>` beside `parts-all` make one of what each part of the offline half is worth; parts.json says what
it takes of the arithmetic (`python scripts/benchmarks/benchmark.py --only parts --json results/parts.json`). `few-<who explores>`
makes one of exploration, paired with `few-random`. Every other experiment is a row of the ablations, paired by seed
with `main`, and one of results/before/ with what `main` was at its time (`network-labels`, `full-actions`,
`older-weights`, or `no-plan` if it did not plan); the last table there has the evaluations while training. What is
missing is left out. The data are of our own expert, which every name says.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts' / 'analysis')]  # run from any folder

from plot_runs import read_metric  # noqa: E402

from support.figures import plot_budgets  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import read_csv  # noqa: E402
from support.stats import mean_half_width, mean_std  # noqa: E402

BEGIN = '<!-- made by scripts/make_tables.py -->'
END = '<!-- end of what scripts/make_tables.py made -->'
METRIC = 'evaluation/overall_success'
MILESTONES = (10_000, 50_000, 100_000, 250_000)
NEAR = 0.1  # an evaluation this share of a milestone away from it stands for it; nothing is interpolated
OUR_EXPERTS = ('antmaze-', 'humanoidmaze-')  # whose data are not the official files, whatever their names
# what a run is called, where it lies, how long it is and how often it is looked at: no part of the method
BUDGET = {'dataset', 'dataset_path', 'data_dir', 'dataset_url', 'offline_checkpoint', 'save_dir', 'resume', 'seed',
          'device', 'num_updates', 'num_epochs', 'max_steps', 'max_episodes', 'env_processes', 'log_interval',
          'val_interval', 'val_batches', 'eval_interval', 'eval_episodes', 'final_eval_episodes', 'maze_figures',
          'no_maze_figures', 'video', 'tensorboard', 'wandb', 'mamba_backend'}
WORDS = {
    'README.md': {
        'header': ('data', 'success, %', 'environment steps', 'updates offline + online', 'seeds × tasks × episodes',
                   'HIQL, %', 'best published, %'),
        'flags': 'All with the default flags, except',
        'caption': 'Mean ± standard deviation over seeds of the last checkpoint, no action label offline. The last two '
                   'columns are references on the official data, with all action labels, 1M updates and no '
                   'environment steps; † another evaluation than OGBench\'s, or not checked.',
        'like': ('success, % (seeds), on the very same data', 'demonstrator, with its map', 'HIQL, true labels',
                 'OPSO, true labels', 'OPSO, no labels, same seeds'),
        'budgets': 'success, % (seeds), after environment steps',
        'same labels': 'HIQL, labels of as many steps',
        'figure': 'Success against environment steps, all of them random'},
    'README.ko.md': {
        'header': ('데이터', '성공률, %', 'environment step', 'offline + online update', 'seed × task × episode',
                   'HIQL, %', '발표된 최고, %'),
        'flags': '모두 기본 flag이며, 예외는',
        'caption': '마지막 checkpoint의 성공률을 seed에 대해 평균 ± 표준편차로 나타냈으며, '
                   'offline action label은 쓰지 않았습니다. 마지막 두 열은 공식 데이터에서 모든 action label과 update '
                   '1M회를 쓰고 environment step은 쓰지 않은 참고 수치입니다. †는 평가 방식이 다르거나 확인하지 못한 '
                   '것입니다.',
        'like': ('같은 데이터에서의 성공률, % (seed 수)', '시연자(지도를 앎)', 'HIQL, 실제 label', 'OPSO, 실제 label',
                 'OPSO, label 없음, 같은 seed'),
        'budgets': 'environment step 수에 따른 성공률, % (seed 수)',
        'same labels': 'HIQL, 같은 수의 step에서 얻은 label',
        'figure': 'Environment step 수에 따른 성공률. 모든 step은 무작위 action입니다'}}
DETAILS = 'results/README.md'
BEFORE = 'results/before/README.md'
OLDER = 'network-labels'  # the last `main` but this
# what experiments under results/before/ are compared with: `main` of their time
REFERENCES_BEFORE = (OLDER, 'full-actions', 'older-weights')
ABLATIONS = ('experiment', 'flags', 'data', 'success, %', 'beside it, same seeds', 'difference', 'n seeds',
             'environment steps', 'episodes a seed')
LOSSES = ('data', 'readings lost', 'what fills in', 'success, %', 'beside Mamba, 95 % interval, by seed', 'n seeds',
          'environment steps', 'episodes a seed')
FILLERS = {'mamba': 'Mamba', 'gru': 'GRU', 'mlp': 'MLP, no memory', 'hold': 'nothing: the last reading stays'}
PARTS = ('what is other', 'of the arithmetic', 'data', 'with the map, %', 'difference, 95 % interval, by seed',
         'without the map, %', 'difference, 95 % interval, by seed', 'n seeds')
PART_NAMES = {'no-critic': 'no Q', 'no-infonce': 'no InfoNCE', 'no-alignment': 'no alignment',
              'no-next-state': 'no next state', 'no-reward-done': 'no reward/done', 'gru': 'a GRU for the Mamba',
              'mlp': 'an MLP for the Mamba'}
EXPLORERS = {'random': 'random actions', 'own': 'the agent, ε = 0', 'goal-biased': 'the agent, goal-biased'}
EXPLORING = ('who takes the later steps', 'data', 'success, %', 'difference, 95 % interval, by seed', 'n seeds',
             'environment steps', 'episodes a seed')
DEMONSTRATOR = ('maze', 'expert', 'noise on its actions', 'success, %', 'episodes')


@dataclasses.dataclass
class Result:
    """What is kept of one run."""

    seed: str  # name of its folder
    success: float  # of the last checkpoint, 0 to 1
    without_plan: float | None  # of the same checkpoint and episodes, where that was measured
    episodes: int  # per task
    flags: str  # those of the method that it was given
    online_flags: dict | None  # all of the online half; None where no config is kept
    offline_steps: int | None = None
    online_steps: int | None = None
    probes: int = 0  # environment steps of scripts/label_with_simulator.py
    curve: tuple | None = None  # (steps, successes) of the evaluations while training

    @property
    def planned(self):
        """False for runs without a map, those that are older than it included."""
        return self.online_flags is None or self.online_flags.get('plan', False)

    @property
    def has_curve(self):
        """Was it evaluated on the way, and not at its end only?"""
        return self.curve is not None and len(self.curve[0]) > 1

    @property
    def environment_steps(self):
        """All of them, probes included; None where they are not kept."""
        return None if self.online_steps is None else self.online_steps + self.probes

    @property
    def online_updates(self):
        """Gradient steps of the online half, from the flags it was run with; None where they are not kept."""
        if not self.online_flags or not self.online_steps:
            return None
        first = self.online_flags['initial_updates']
        if 'labeler_dropout' in self.online_flags:  # a network, trained alone at first
            first += self.online_flags.get('labeler_updates', 0)
        later = self.online_steps - self.online_flags['random_steps']
        return round(first + self.online_flags['update_ratio'] * max(0, later))


def read_results(folder):
    """-> {(experiment, dataset): [Result, ...]}."""
    results = {}
    for path in sorted(Path(folder).glob('*/*/seed*/evaluation.json')):
        experiment, dataset = path.parts[-4:-2]
        results.setdefault((experiment, dataset), []).append(read_result(path))
    return results


def read_result(path):
    """The run whose evaluation.json is `path`."""
    metrics = json.loads(path.read_text(encoding='utf-8'))
    without_plan = None
    if metrics.get('comparison'):
        without_plan = metrics[METRIC] - metrics['comparison']['overall']['difference']

    online_flags = None
    config = path.with_name('config_online.json')
    if config.is_file():
        online_flags = json.loads(config.read_text(encoding='utf-8')).get('flags')

    result = Result(path.parts[-2], metrics[METRIC], without_plan, metrics['episodes_per_task'],
                    given_flags(path.parent, metrics), online_flags)
    offline = path.with_name('offline.csv')
    if offline.is_file():
        result.offline_steps = int(read_csv(offline)[-1]['step'])
    online = path.with_name('online.csv')
    if online.is_file():
        result.online_steps = int(read_csv(online)[-1]['step'])
        result.curve = read_metric(online, METRIC)
    labeling = path.with_name('labeling.csv')
    if labeling.is_file():
        result.probes = int(read_csv(labeling)[-1]['step'])
    return result


def given_flags(folder, metrics):
    """-> the flags of the method that a run was given, as on its command lines; '' where no config is kept. What it was
    told only when it was evaluated, the `metrics` say."""
    words = []
    for half in ('offline', 'labeling', 'online'):
        path = folder / f'config_{half}.json'
        if not path.is_file():
            continue

        name = ''
        for word in json.loads(path.read_text(encoding='utf-8'))['argv'][1:]:
            if word.startswith('--'):
                name = word[2:].split('=')[0].replace('-', '_')
            elif name == 'actions_path':
                word = Path(word).name  # wherever it lay
            if name and name not in BUDGET:
                words.append(word)

    noise = metrics.get('stuck_noise')
    if noise and '--stuck_noise' not in words:
        words += ['--stuck_noise', f'{noise:g}']
    return ' '.join(words)


def label(dataset):
    """A dataset's name, and whose data it is: OGBench's protocol moves points and arms without an expert."""
    whose = 'our expert' if dataset.startswith(OUR_EXPERTS) else 'official protocol'
    return f'`{short(dataset)}` ({whose})'


def short(dataset):
    return dataset.removesuffix('-v0')


def mean_text(values):
    """Mean ± standard deviation of successes, in percent."""
    mean, std = mean_std([100 * value for value in values])
    return f'{mean:.1f}' + (f' ± {std:.1f}' if len(values) > 1 else '')


def updates_text(runs):
    offline = _range(run.offline_steps for run in runs)
    online = [run.online_updates for run in runs if run.online_updates]
    return f'{offline} + {round(np.mean(online), -2):,.0f}' if online else offline


def curve_rows(results):
    """-> cells (name, mean success at the evaluations nearest to each of `MILESTONES`); not for a single evaluation."""
    rows = []
    for (experiment, name), runs in sorted(results.items()):
        curves = [run.curve for run in runs if run.has_curve]
        if curves:
            rows.append((f'{label(name)}, `{experiment}`', *(_at(curves, steps) for steps in MILESTONES)))
    return rows


def _at(curves, milestone):
    values = []
    for steps, successes in curves:
        nearest = int(np.argmin(np.abs(np.subtract(steps, milestone))))
        if abs(steps[nearest] - milestone) <= NEAR * milestone:
            values.append(successes[nearest])
    return f'{100 * np.mean(values):.0f}' if len(values) == len(curves) else '–'


def _range(values):
    values = sorted(value for value in values if value is not None)
    if not values:
        return '–'
    return f'{values[0]:,}' if values[0] == values[-1] else f'{values[0]:,}–{values[-1]:,}'


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def front_runs(results, before, published):
    """-> {dataset: runs} of the front page: `main`, or what it was before where there is none."""
    mains = {name: runs for (experiment, name), runs in results.items() if experiment == 'main'}
    older = {name: runs for (experiment, name), runs in before.items() if experiment == OLDER}
    runs_of = older | mains
    return {name: runs_of[name] for name in dict.fromkeys([*published, *sorted(runs_of)]) if name in runs_of}


def read_hiql(folder):
    """-> {dataset: {environment steps that labels are from, 0 for true actions: success after most updates}} of the
    evaluations.jsonl that results/baselines/hiql_gpu_evaluate.py wrote."""
    successes = {}
    for path in sorted(Path(folder).glob('*/evaluations.jsonl')):
        rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        rows.sort(key=lambda row: row['updates'])
        successes[path.parent.name] = {row['label_steps']: row['overall'] for row in rows}
    return successes


def make_front(results, before, hiql, words, published):
    """-> what stands between the markers of a README's front page."""
    front = front_runs(results, before, published)
    if not front:
        return ''

    rows = []
    for name, runs in front.items():
        reference = published.get(name, {'HIQL': '–', 'best': '–', 'source': ''})
        rows.append((
            label(name),
            f'**{mean_text([run.success for run in runs])}**',
            _range(run.environment_steps for run in runs),
            updates_text(runs),
            counts(runs),
            reference['HIQL'],
            f'{reference["best"]} {reference["source"]}'.strip(),
        ))
    parts = [table(words['header'], rows), words['caption']]

    others = {}
    for name, runs in front.items():
        for flags in sorted({run.flags for run in runs} - {''}):
            others.setdefault(flags, []).append(f'`{short(name)}`')
    if others:
        listed = (f'{", ".join(datasets)}: `{flags}`' for flags, datasets in others.items())
        parts.append(f'{words["flags"]} {"; ".join(listed)}.')

    if rows := like_for_like_rows(results, hiql):
        parts.append(table(words['like'], rows))

    if budgets := by_steps(results):
        parts.append(budget_table(budgets, hiql, words))
        picture = f'<img src="assets/success_by_steps.png" width="75%" alt="{words["figure"]}">'
        parts.append(f'<p align="center">{picture}</p>')
    return '\n\n'.join(parts)


def like_for_like_rows(results, hiql):
    """Cells of who does how well on one file of data: the demonstrator, at the noise of navigate and stitch (nobody in
    explore heads for a goal); HIQL (`read_hiql`) and OPSO (`true-actions`) with its true actions; and the same seeds of
    OPSO without them."""
    experts = {maze_of(name): runs for (experiment, name), runs in results.items() if experiment == 'expert-noise-0.2'}
    rows = []
    for (experiment, name), runs in sorted(results.items()):
        if experiment != 'true-actions':
            continue
        _, pairs = same_seeds(results, name, runs, ['main'])
        if pairs:
            expert = None if 'explore' in name else experts.get(maze_of(name))
            rows.append((
                label(name),
                mean_text([run.success for run in expert]) if expert else '–',
                f'{mean_text([hiql[name][0]])} (1)' if name in hiql else '–',
                *(f'{mean_text(successes)} ({len(pairs)})' for successes in zip(*pairs, strict=True)),
            ))
    return rows


def maze_of(name):
    """antmaze-large-navigate-v0 -> antmaze-large."""
    return name.rsplit('-', 2)[0]


def by_steps(results):
    """-> {dataset: {environment steps: [success of each run]}} of `steps-<n>`, and of the same seeds of `main`."""
    budgets = {}
    for (experiment, name), runs in results.items():
        before, _, steps = experiment.rpartition('-')
        _, pairs = same_seeds(results, name, runs, ['main'])
        if before == 'steps' and steps.isdigit() and pairs:
            own = budgets.setdefault(name, {})
            own[int(steps)] = [success for success, _ in pairs]

            whole = results['main', name][0].online_steps
            beside = own.get(whole, [])
            own[whole] = max(beside, [success for _, success in pairs], key=len)
    return {name: dict(sorted(own.items())) for name, own in sorted(budgets.items())}


def budget_table(budgets, hiql, words):
    """Success by steps, a row for each dataset and below it one of HIQL with the same labels, where there is any."""
    steps = sorted({count for own in budgets.values() for count in own})
    rows = []
    for name, own in budgets.items():
        rows.append((label(name), *(f'{mean_text(own[count])} ({len(own[count])})' if count in own else '–'
                                    for count in steps)))
        if set(hiql.get(name, {})) - {0}:
            rows.append((words['same labels'], *(f'{mean_text([hiql[name][count]])} (1)' if count in hiql[name] else '–'
                                                 for count in steps)))
    return table((words['budgets'], *(f'{count:,}' for count in steps)), rows)


def counts(runs):
    episodes = sorted({run.episodes for run in runs})
    return f'{len(runs)} × 5 × {"–".join(map(str, episodes))}'


def make_details(results, shares):
    """-> what stands between the markers of results/README.md."""
    parts = []
    if rows := ablation_rows(results, ['main']):
        parts.append(table(ABLATIONS, rows))
    if rows := losses_rows(results):
        parts.append(table(LOSSES, rows))
    if rows := part_rows(results, shares):
        parts.append(table(PARTS, rows))
    if rows := exploring_rows(results):
        parts.append(table(EXPLORING, rows))
    if rows := demonstrator_rows(results):
        parts.append(table(DEMONSTRATOR, rows))
    return '\n\n'.join(parts)


def make_before(before):
    """-> what stands between the markers of results/before/README.md."""
    parts = []
    if rows := ablation_rows(before, REFERENCES_BEFORE):
        parts.append(table(ABLATIONS, rows))
    if rows := curve_rows(before):
        header = ('success, %, at the evaluation nearest to', *(f'{steps:,} steps' for steps in MILESTONES))
        columns = zip(header, *rows, strict=True)
        header, *rows = zip(*(column for column in columns if set(column[1:]) != {'–'}), strict=True)
        parts.append(table(header, rows))
    return '\n\n'.join(parts)


def ablation_rows(results, references):
    """Cells of each experiment that is compared with one of `references`; these are rows too, but for `main`."""
    rows = []
    for (experiment, name), runs in sorted(results.items()):
        if experiment == 'main' or experiment.startswith(('expert-', 'few-', 'lost-', 'parts-')):
            continue

        planned = experiment == 'no-plan' or all(run.planned for run in runs)
        own = references_of(experiment, references) if planned else ['no-plan']
        reference, pairs = same_seeds(results, name, runs, own)

        beside = '–'
        difference = '–'
        if pairs:
            beside = f'{mean_text([other for _, other in pairs])} (`{reference}`)'
            difference = f'{100 * np.mean([ours - other for ours, other in pairs]):+.1f}'

        flags = ', '.join(f'`{flags}`' for flags in sorted({run.flags for run in runs} - {''})) or '–'
        rows.append((
            f'`{experiment}`',
            flags,
            label(name),
            mean_text([run.success for run in runs]),
            beside,
            difference,
            str(len(pairs)),
            _range(run.environment_steps for run in runs),
            _range(5 * run.episodes for run in runs),
        ))
    return rows


def references_of(experiment, references):
    """What an experiment may be compared with; <reference>-<what was other> with that reference or an older one."""
    for i, reference in enumerate(references):
        if experiment.startswith(f'{reference}-'):
            return references[i:]
    return [other for other in references if other != experiment]


def same_seeds(results, name, runs, references):
    """-> (the first of the experiments `references` that shares seeds of a dataset with `runs`, [(success of a run, of
    the reference with its seed)])."""
    for reference in references:
        successes = {run.seed: run.success for run in results.get((reference, name), [])}
        pairs = [(run.success, successes[run.seed]) for run in runs if run.seed in successes]
        if pairs:
            return reference, pairs
    return '', []


def by_losses(results):
    """-> {dataset: {what fills in: {share of lost readings: runs}}} of `lost-<P>-<what>`."""
    losses = {}
    for (experiment, name), runs in sorted(results.items()):
        if experiment.startswith('lost-'):
            _, share, filler = experiment.split('-')
            losses.setdefault(name, {}).setdefault(filler, {})[float(share)] = runs
    return losses


def losses_rows(results):
    """Cells of the table of lost readings, paired by seed with those of the Mamba."""
    rows = []
    for name, fillers in by_losses(results).items():
        for share in sorted({share for own in fillers.values() for share in own}):
            mamba = fillers.get('mamba', {}).get(share, [])
            for filler in FILLERS:
                runs = fillers.get(filler, {}).get(share)
                if not runs:
                    continue
                others = mamba if filler != 'mamba' else []
                rows.append((label(name), f'{share:.0%}', FILLERS[filler], *cells_beside(runs, others)))
    return rows


def cells_beside(runs, others):
    """-> the cells of `runs`: success, how it differs from that of `others` with the same seeds, seeds, environment
    steps, episodes."""
    successes = {other.seed: other.success for other in others}
    differences = [run.success - successes[run.seed] for run in runs if run.seed in successes]
    return (
        mean_text([run.success for run in runs]),
        differences_text(differences) if differences else '–',
        str(len(runs)),
        _range(run.environment_steps for run in runs),
        _range(5 * run.episodes for run in runs),
    )


def part_rows(results, shares):
    """Cells of what another offline half (`parts-<what is other>`) loses, paired by seed with the usual one
    (`parts-all`); at the end over all datasets. shares: {what is other: its share of the arithmetic}."""
    wholes = {name: {run.seed: run for run in runs} for (experiment, name), runs in sorted(results.items())
              if experiment == 'parts-all'}
    rows = []
    by_part = {}  # what is other -> its pairs, a list for each dataset
    for name, whole in wholes.items():
        successes = [mean_text([run.success for run in whole.values()]),
                     mean_text([run.without_plan for run in whole.values()])]
        rows.append(('nothing', '–', label(name), successes[0], '–', successes[1], '–', str(len(whole))))
        for part, text in PART_NAMES.items():
            pairs = [(run, whole[run.seed]) for run in results.get((f'parts-{part}', name), []) if run.seed in whole]
            if pairs:
                by_part.setdefault(text, []).append(pairs)
                rows.append(part_row(text, shares, label(name), pairs))

    for text, datasets in by_part.items():
        if len(datasets) > 1:
            rows.append(part_row(text, shares, f'these {len(datasets)}', sum(datasets, [])))
    return rows


def part_row(text, shares, data, pairs):
    """-> the cells of what is other, `text`, from pairs of Results (with it, with nothing other)."""
    return (
        text,
        f'{shares[text]:.0%}' if text in shares else '–',
        data,
        mean_text([run.success for run, _ in pairs]),
        differences_text([run.success - other.success for run, other in pairs]),
        mean_text([run.without_plan for run, _ in pairs]),
        differences_text([run.without_plan - other.without_plan for run, other in pairs]),
        str(len(pairs)),
    )


def exploring_rows(results):
    """Cells of the table of exploration with few steps, paired by seed with random actions only."""
    rows = []
    for name in sorted(name for experiment, name in results if experiment == 'few-random'):
        random = results['few-random', name]
        seeds = {run.seed for run in random}
        for explorer, text in EXPLORERS.items():
            runs = [run for run in results.get((f'few-{explorer}', name), []) if run.seed in seeds]
            if runs:
                others = random if explorer != 'random' else []
                rows.append((text, label(name), *cells_beside(runs, others)))
    return rows


def differences_text(differences):
    """Mean of differences in percent, its 95 % interval by Student's t, and each of them."""
    values = [100 * difference for difference in differences]
    each = ', '.join(f'{value:+.0f}' for value in values)
    width = f' ± {mean_half_width(values):.0f}' if len(values) > 1 else ''
    return f'{np.mean(values):+.1f}{width} ({each})'


def read_shares(path):
    """-> {what is other: share of an update's arithmetic} from what `benchmark.py --only parts --json` wrote."""
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding='utf-8'))['rows']
    return {f'no {part}': share for row in rows for part, share in row['shares'].items()}


def demonstrator_rows(results):
    """The expert of our data, which knows the maze and every action; datasets of one maze share the measurement."""
    rows = {}
    for (experiment, name), runs in sorted(results.items()):
        if experiment.startswith('expert-noise-'):
            maze = maze_of(name)
            noise, _, which = experiment.removeprefix('expert-noise-').partition('-')
            weights = f'{which}_{maze.partition("maze")[0]}_expert.npz'.removeprefix('_')
            rows[maze, experiment] = (f'`{maze}`', f'`{weights}`', noise, mean_text([run.success for run in runs]),
                                      _range(5 * run.episodes for run in runs))
    return list(rows.values())


def with_block(text, block, name):
    """A README's text with `block` between its markers. Raises ValueError unless each marker is there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f'{name} needs one line {BEGIN} and one line {END}')
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}'


def draw_losses(results, folder):
    """Success against the share of readings that get lost, one colour for each thing that fills in; one picture, of the
    dataset that has most."""
    losses = by_losses(results)
    if not losses:
        return
    name = max(losses, key=lambda name: sum(map(len, losses[name].values())))
    fillers = losses[name]
    groups = {}
    for filler, text in FILLERS.items():
        if filler in fillers:
            # of what nothing is lost, nothing has to be filled in
            everything = {0.0: results['main', name]} if ('main', name) in results else {}
            groups[text] = {100 * share: [run.success for run in runs]
                            for share, runs in (everything | fillers[filler]).items()}
    plot_budgets(groups, folder / 'success_by_losses.png', 'readings that get lost, %', 'success, %',
                 f'{short(name)}, no action labels offline', log_scale=False)


def draw_steps(results, hiql, folder):
    """Success against environment steps, one colour for each dataset; dashed, HIQL's with labels of as many steps."""
    budgets = by_steps(results)
    if budgets:
        inferred = {short(name): {steps: [success] for steps, success in own.items() if steps}
                    for name, own in hiql.items() if name in budgets and set(own) - {0}}
        plot_budgets({short(name): own for name, own in budgets.items()}, folder / 'success_by_steps.png',
                     'random environment steps', 'success, %',
                     'No action labels offline, data of our own expert', beside=('HIQL', inferred))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='only say whether the tables are up to date')
    parser.add_argument('--root', default=str(ROOT), help='folder with the READMEs and results/')
    flags = parser.parse_args()

    root = Path(flags.root)
    results = read_results(root / 'results')
    published = json.loads((ROOT / 'scripts' / 'published.json').read_text(encoding='utf-8'))
    published.pop('about')
    before = read_results(root / 'results' / 'before')
    hiql = read_hiql(root / 'results' / 'baselines' / 'hiql_gpu')
    blocks = {name: make_front(results, before, hiql, words, published) for name, words in WORDS.items()}
    blocks[DETAILS] = make_details(results, read_shares(root / 'results' / 'parts.json'))
    blocks[BEFORE] = make_before(before)

    stale = {}  # name of a file -> what it should say
    for name, block in blocks.items():
        text = (root / name).read_text(encoding='utf-8')
        new = with_block(text, block, name)
        if new != text:
            stale[name] = new

    if flags.check:
        if stale:
            sys.exit(f'not up to date: {", ".join(stale)}; run python scripts/make_tables.py')
        return

    for name, text in stale.items():
        write_atomic(root / name, lambda file, text=text: file.write(text.encode()))
    draw_steps(results, hiql, root / 'assets')
    draw_losses(results, root / 'assets')
    rewritten = ', '.join(stale) or 'nothing, all was up to date'
    print(f'{len(results) + len(before)} experiments and datasets; rewritten: {rewritten}')


if __name__ == '__main__':
    run_main(main)
