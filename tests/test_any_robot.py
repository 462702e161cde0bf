"""scripts/benchmarks/any_robot.py: what it trains, and the rows that it adds."""

import pytest

from scripts.benchmarks import any_robot
from support.results import AnyRobotRun, read_rows


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """-> [(script, its flags), ...] of the trainings and data, none of which runs."""
    ran = []

    def run(script, folder, *flags):
        ran.append((script, ' '.join(map(str, flags))))
        folder.mkdir(parents=True)
        if script == 'online_trainer.py':
            (folder / 'online.csv').write_text(
                'step,evaluation/task1_success,evaluation/task2_success,evaluation/overall_success\n'
                '1000,0,0,0\n9998,1,0.5,0.75\n')

    def make(script, *flags):
        ran.append((script, ' '.join(map(str, flags))))

    monkeypatch.setattr(any_robot, 'run', run)
    monkeypatch.setattr(any_robot, 'make', make)
    monkeypatch.chdir(tmp_path)
    return ran


def test_each_run_is_a_row_once(commands, capsys):
    flags = ['--cases', 'rotated', '--seeds', '4', '5', '--csv', 'rows.csv']
    any_robot.main(flags)
    rows = read_rows('rows.csv', AnyRobotRun)
    assert [(row.case, row.version, row.seed, row.success, row.episodes, row.environment_steps) for row in rows] == [
        ('ant, rotated (random basis)', 'after', seed, 0.75, 100, 9998) for seed in (4, 5)]
    assert [script for script, _ in commands] == ['offline_trainer.py', 'online_trainer.py'] * 2
    assert '--observe rotated:5' in commands[2][1] and '--max_steps 10000' in commands[3][1]
    assert 'rotated, seed 5: success 75.0% over 100 episodes' in capsys.readouterr().out
    any_robot.main(flags)
    assert len(commands) == 4


@pytest.mark.parametrize('name', any_robot.CASES)
def test_data_are_made_and_named(commands, name, tmp_path):
    case = any_robot.CASES[name]
    any_robot.main(['--cases', name, '--seeds', '0', '--csv', 'rows.csv', '--data_dir', 'data'])
    made, offline = commands[:-1] if case.data else (None, commands[0])
    if made:
        assert (any_robot.ROOT / case.data[0]).is_file() and str(tmp_path / 'data') in made[1]
        assert str(tmp_path / 'data') in offline[1]
    assert ' '.join(case.source) in offline[1] and ' '.join(case.source) in commands[-1][1]


def test_labels_are_distinct():
    labels = [case.label for case in any_robot.CASES.values()]
    assert len(set(labels)) == len(labels)
