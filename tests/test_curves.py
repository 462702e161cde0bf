"""The panels of both trainers: rows by the budget, chance, success over gradient steps, labels by action."""

import dataclasses
import math
import types

import pytest

import offline_trainer
import online_trainer
from offline_agent import OfflineConfig


@dataclasses.dataclass
class Intervals:
    """Flags of `OfflineTrainConfig` that `choose_intervals` reads."""

    log_interval: int = 0
    val_interval: int = 0


@pytest.mark.parametrize(('updates', 'log_interval', 'val_interval'), [
    (1, 1, 30), (60, 1, 30), (1000, 10, 100), (10_000, 100, 500), (1_000_000, 100, 500)])
def test_intervals_follow_the_budget(updates, log_interval, val_interval):
    flags = {}
    run = types.SimpleNamespace(set_flags=lambda **values: flags.update(values))
    lines = offline_trainer.choose_intervals(run, Intervals(), updates)
    assert flags == {'log_interval': log_interval, 'val_interval': val_interval}
    assert lines[0] == f'--log_interval {log_interval}: from {updates:,} updates'

    flags.clear()
    assert len(offline_trainer.choose_intervals(run, Intervals(val_interval=7), updates)) == 1
    assert flags == {'log_interval': log_interval}, 'a given flag stays'


def test_panels_have_what_chance_gives():
    config = types.SimpleNamespace(batch_size=5)
    agent_config = OfflineConfig(current_goals=0.5, random_goals=0.25)
    panels = {panel.title: panel for panel in offline_trainer.panels_of(config, agent_config, positions=8)}
    # the own latent k steps later, and 8 in each of four other windows
    assert panels['InfoNCE'].reference == ('chance', math.log(33))
    assert panels['InfoNCE accuracy'].reference == ('chance', pytest.approx(1 / 33))
    assert panels['reward/done'].reference == ('chance', pytest.approx(math.log(2)))
    assert panels['value V (its target moves)'].reference is None
    assert not panels['value V (its target moves)'].better and panels['next state'].better == '↓'


def test_online_panels_have_the_metrics_and_each_action():
    panels = online_trainer.all_panels(tasks=2, actions=3)
    success, over_updates, labels = panels[:3]
    assert (success.x, over_updates.x) == ('step', 'gradient_steps')
    assert success.columns == over_updates.columns
    assert [*success.columns] == ['mean', 'task 1', 'task 2']
    assert [*labels.columns.values()] == ['labeler/r2', *(f'labeler/r2_action{k}' for k in range(3))]
    columns = {column for panel in panels for column in panel.columns.values()}
    assert columns >= {'training/total_loss', 'evaluation/overall_success', 'collect/reward',
                       'collect/epsilon', 'collect/action_noise', 'collect/goal_biased_rate'}


def test_online_panels_without_tasks_or_labeler():
    panels = online_trainer.all_panels(tasks=1, actions=0)
    assert [*panels[0].columns] == ['mean'] and not any('labels' in panel.title for panel in panels)
    many = online_trainer.all_panels(tasks=1, actions=21)[2].columns
    assert len(many) == 22 and [name for name in many if name[0] != '_'] == ['mean', 'actions']


def test_rounds_that_were_cut_short_are_not_drawn_as_failures():
    cut = {'step': 1, 'collect/whole_rate': 0.4, 'collect/success': 0.0, 'collect/epsilon': 0.3}
    whole = {'step': 2, 'collect/whole_rate': 1.0, 'collect/success': 1.0, 'collect/epsilon': 0.2}
    first, second = online_trainer.without_cut_rounds([cut, whole])
    assert 'collect/success' not in first and first['collect/epsilon'] == 0.3 and second == whole
    assert online_trainer.without_cut_rounds([cut]) == [cut]
