"""scripts/benchmarks/pretraining_worth.py: which runs are missing, and the paired table."""

import pytest

from scripts.benchmarks import pretraining_worth as worth
from support.metrics import MetricsLog

SMALL = ['--settings', 'lifted:0', '--variants', 'default', 'one_update', '--seeds', '0', '1', '--num_updates', '3',
         '--max_steps', '9', '--episodes', '1']


@pytest.fixture
def trainings(monkeypatch):
    """Replace the trainers by CSV files; return the list of their command lines."""
    calls = []

    def run(script, folder, *flags):
        calls.append([script, *map(str, flags)])
        folder.mkdir()
        seed = flags[flags.index('--seed') + 1]
        gain = 0.25 if 'default' in str(folder) else 0
        offline = {'validation/value_loss': 2.0, 'validation/infonce_loss': 5.0}
        online = {'labeler/r2': 0.5, 'evaluation/overall_success': 0.5 + gain + 0.1 * seed}
        MetricsLog(folder / ('train.csv' if 'offline' in script else 'online.csv')).log(
            3, offline if 'offline' in script else online)

    monkeypatch.setattr(worth, 'run', run)
    return calls


def test_the_table_pairs_variants_with_the_default(trainings, tmp_path, capsys):
    worth.main([*SMALL, '--folder', str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        '| setting | labels R² | default | one_update |', '|---|---|---|---|',
        '| lifted:0 | 0.50 | 80.0 ± 7.1 (n = 2) | -25.0 ± 0.0 (n = 2) |']
    assert len(trainings) == 8
    flags = ' '.join(trainings[2])
    assert '--observe lifted:0' in flags and flags.endswith('--num_updates 1'), 'the flags of a variant come last'

    # finished runs are not repeated; a loss without its objective is empty
    worth.main([*SMALL, '--folder', str(tmp_path), '--seeds', '0', '1', '2'])
    assert len(trainings) == 12
    row = worth.read_rows(tmp_path / 'results.csv', worth.Row)[0]
    assert row.infonce_loss == 5 and row.state_loss is None


def test_runs_of_another_budget_are_refused(trainings, tmp_path):
    worth.main([*SMALL, '--folder', str(tmp_path)])
    with pytest.raises(ValueError, match='--num_updates 3 .* or another --folder'):
        worth.main([*SMALL, '--folder', str(tmp_path), '--num_updates', '4'])
    with pytest.raises(ValueError, match='--episodes 0: must be at least 1'):
        worth.main([*SMALL, '--folder', str(tmp_path), '--episodes', '0'])


def test_a_failed_training_names_its_log(tmp_path):
    with pytest.raises(ValueError, match=r'missing\.py failed; its output is in .*offline\.log'):
        worth.run('missing.py', tmp_path / 'offline', '--seed', 0)
