"""Checkpoints with changed bits, foreign or forged contents: one line that names the file, or a working agent."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labeling.labeler import Labeler
from labeling.simulator_labels import ActionSearch, NetworkConfig
from observing.observation_models import FULL_STATE, observation_model_of
from offline_agent import OfflineAgent
from online_agent import OnlineAgent
from planning.objects import ObjectMap
from scripts.label_with_simulator import SimulatorLabeling
from support import files
from support.contents import Number, Tensor, check_layout
from support.files import DATA_KEYS, check_content, check_types, load_checkpoint, prefix_errors, save_checkpoint

DATA = {'dataset': 'toy', 'path': 'toy.npz', 'max_trajectories': 0, 'fingerprint': 'f',
        'observation_model': vars(FULL_STATE)}


@pytest.fixture
def offline(make_agent, make_dataset):
    """A checkpoint whose optimiser has moments."""
    agent = make_agent()
    agent.update(make_dataset().sample(4, np.random.default_rng(0)))
    return {'kind': 'offline', 'data': DATA, 'agent': agent.state_dict()}


@pytest.fixture
def online(agent, batches, monkeypatch):
    """A checkpoint of an agent with a labeler and an optimiser with moments."""
    fit = Labeler.fit
    monkeypatch.setattr(Labeler, 'fit', lambda *args, **options: fit(*args[:4], **options | {'kernel_updates': 2}))
    agent.fit_labeler(batches, np.random.default_rng(0))
    agent.update(batches.sample(np.random.default_rng(0)))
    return {'kind': 'online', 'dataset': 'toy', 'data': DATA, 'agent': agent.state_dict()}


def load_offline(checkpoint):
    check_types(checkpoint['data'], DATA_KEYS)  # as `load_recorded` does
    observation_model_of(checkpoint)
    return OfflineAgent.from_state_dict(checkpoint['agent'])


def load_online(checkpoint):
    observation_model_of(checkpoint)
    return OnlineAgent.from_state_dict(checkpoint['agent'])


def load_labels(checkpoint):
    """Restore a labeling with 6 probed rows, 4 changes and 2 action dimensions."""
    labeling = SimulatorLabeling.__new__(SimulatorLabeling)
    labeling.rows, labeling.solve_order, labeling.action_dim = np.arange(6), np.arange(3), 2
    labeling.config = SimpleNamespace(num_rounds=8)
    labeling.search = ActionSearch(torch.zeros(6, 3), torch.ones(6, 4), 2, NetworkConfig(8, 2, 4, 1e-3))
    labeling.load_state_dict(checkpoint)
    return labeling


@pytest.fixture
def labels():
    probes = {'actions': torch.zeros(6, 2), 'changes': torch.zeros(6, 4)}
    search = ActionSearch(torch.zeros(6, 3), torch.ones(6, 4), 2, NetworkConfig(8, 2, 4, 1e-3))
    network = search._new_network(torch.zeros(6, 3), torch.zeros(6, 4), torch.zeros(6, 2))
    fit = {'network': network.state_dict(), 'rmse': torch.zeros(2), 'r2': 0.5}
    return {'kind': 'labeling', 'rounds_done': 2, 'probes': [probes, probes], 'fit': fit,
            'solved_actions': torch.zeros(2, 2), 'converged': torch.ones(2, dtype=torch.bool),
            'solving_probes': 9}


MISSING = object()
HUGE = 10**9
OFFLINE_FORGERIES = [
    *((f'agent/config/{name}', value) for name, values in {
        'd_model': ['64', -3, 0, 10**7, 64, 32.0, True, None, [32]], 'n_layers': [10**6, 0, 3], 'headdim': [0, 7],
        'hidden_dim': [HUGE, 64], 'd_state': [HUGE, 9], 'd_conv': [HUGE, 3], 'expand': [HUGE, 1],
        'encoder': ['lstm', 'gru', None], 'context_length': [-1, 'x', 2.5], 'discount': [float('nan'), 1.0, '0.9'],
        'lr': [float('inf'), -1.0], 'slow_goals': [1, 'yes'], 'colour': [1]}.items() for value in values),
    *((f'agent/{name}', value) for name in ('config', 'nets', 'targets', 'optimizer', 'step', 'observation_dim',
                                            'has_objects', 'has_dropout') for value in (MISSING, 'x')),
    ('agent/observation_dim', 6), ('agent/observation_dim', HUGE), ('agent/step', 1.5),
    ('agent/nets/encoder.mean', torch.zeros(6)), ('agent/nets/encoder.mean', torch.full((5,), torch.nan)),
    ('agent/nets/encoder.mean', [0.0] * 5), ('agent/nets/proposer.net.0.bias', torch.zeros(32, dtype=torch.int64)),
    ('agent/nets/odd', torch.zeros(1)), ('agent/targets/encoder.std', MISSING),
    ('agent/optimizer/state/0/exp_avg', torch.zeros(3)), ('agent/optimizer/state/0/exp_avg', 'x'),
    ('agent/optimizer/state/0/step', MISSING), ('agent/optimizer/state/999', {}),
    ('agent/optimizer/param_groups/0/lr', 'x'), ('agent/optimizer/param_groups', []),
    *((f'data/{name}', value) for name in DATA for value in (MISSING, 7.5)),
    ('data/observation_model', {}), ('data/observation_model/odd', 1), ('data/observation_model/dimensions', ['x']),
    ('data/observation_model/setting', 'odd'), ('data/observation_model/noise', 3),
    ('data/observation_model/drop_rate', 'x'),
    ('agent', []), ('data', None), ('kind', 'other'), ('kind', 5), ('agent', {}),
]
ONLINE_FORGERIES = [
    *((f'agent/config/{name}', value) for name, values in {
        'idm_hidden_dim': ['64', -3, HUGE, 64], 'action_scale': ['x', float('nan'), 0.0], 'plan': ['no', 0],
        'waypoint_steps': [-5, 'x'], 'stuck_noise': [-1.0, 'x'], 'estimator': ['other']}.items()
      for value in values),
    *((f'agent/{name}', value) for name in ('offline', 'config', 'nets', 'ema_nets', 'optimizer', 'map', 'labeler',
                                            'step', 'action_low', 'action_high') for value in (MISSING, 'x')),
    ('agent/action_low', ['a', 'b', 'c']), ('agent/action_low', [2.0] * 3), ('agent/action_low', [-1.0]),
    ('agent/action_high', [[1.0] * 3]), ('agent/action_high', [float('nan')] * 3), ('agent/action_low', []),
    *((f'agent/map/{name}', MISSING) for name in ('mean', 'states', 'hop', 'jumps')),
    ('agent/map/sources', torch.tensor([10**6], dtype=torch.int32)),
    ('agent/map/targets', torch.tensor([-1], dtype=torch.int32)), ('agent/map/costs', torch.zeros(3)),
    ('agent/map/states', torch.zeros(2, 5)), ('agent/map/centers', torch.zeros(0, 5)),
    ('agent/map/scale', torch.full((5,), torch.inf)), ('agent/map/mean', torch.zeros(6)),
    ('agent/map/near_sources', torch.zeros(3)), ('agent/map/radius', 'x'), ('agent/map/radius', float('nan')),
    ('agent/map/hop', 0), ('agent/map/jumps', {}), ('agent/map/jumps/source_nodes', torch.zeros(4)),
    ('agent/map/jumps/landing_nodes', torch.zeros(2, dtype=torch.int32)),
    ('agent/labeler/inducing_inputs', torch.zeros(3, 9).double()),
    ('agent/labeler/inducing_weights', torch.zeros(1, 0, 1).double()),
    ('agent/labeler/input_mask', torch.zeros(10)), ('agent/labeler/std', MISSING),
    ('agent/labeler/linear_weights', torch.full((3, 10), torch.nan).double()),
    ('agent/offline/has_objects', True), ('agent/offline/has_dropout', True), ('dataset', 5), ('dataset', MISSING),
]
LABEL_FORGERIES = [
    *((name, value) for name in ('rounds_done', 'probes', 'fit', 'solved_actions', 'converged', 'solving_probes')
      for value in (MISSING, 'x', -1)),
    ('rounds_done', 99), ('probes', []), ('probes', [{}]), ('probes/0/actions', torch.zeros(5, 2)),
    ('probes/1/changes', torch.zeros(6, 3)), ('solved_actions', torch.zeros(4, 2)),
    ('converged', torch.ones(3, dtype=torch.bool)), ('fit/network', {}), ('fit/network/context_mean', 'x'),
    ('fit/rmse', MISSING), ('fit/odd', 1), ('fit/rmse', torch.zeros(3)),
]


def forge(checkpoint, path, value):
    """Return a copy of a checkpoint in which the entry at a path has another value, or is missing."""
    forged = at = copy.copy(checkpoint)
    *names, last = [int(name) if name.isdigit() else name for name in path.split('/')]
    for name in names:  # copies along the path
        at[name] = copy.copy(at[name])
        at = at[name]
    if value is MISSING:
        del at[last]
    else:
        at[last] = value
    return forged


def tracebacks(tmp_path, checkpoint, kind, load, use, forgeries):
    """Return the forgeries that give neither one line with the file's name nor a working agent, and the others."""
    path = tmp_path / 'forged.pth'
    save_checkpoint(path, checkpoint)
    checkpoint = load_checkpoint(path, kind)
    use(load(checkpoint))  # works as it is

    bad, lines, worked = [], [], []
    for name, value in forgeries:
        content = forge(checkpoint, name, value)
        try:
            check_content(content, path, kind)
            with prefix_errors(path):
                loaded = load(content)
            use(loaded)
            worked.append((name, value))
        except ValueError as error:
            lines.append(str(error))
            if str(path) not in str(error) or '\n' in str(error):
                bad.append((name, value, error))
        except Exception as error:
            bad.append((name, value, error))
    return bad, lines, worked


def test_forged_offline_checkpoints_give_one_line_or_work(tmp_path, offline, make_dataset):
    batch = make_dataset().sample(4, np.random.default_rng(0))
    bad, lines, worked = tracebacks(tmp_path, offline, 'offline', load_offline, lambda agent: agent.update(batch),
                                    OFFLINE_FORGERIES)
    assert not bad and len(lines) > 60, bad
    allowed = {'agent/optimizer/param_groups/0/lr', 'agent/optimizer/param_groups'}  # settings decide
    assert {name for name, _ in worked} <= allowed, worked


def test_forged_online_checkpoints_give_one_line_or_work(tmp_path, online, states):
    def use(agent):
        actions, _ = agent.act(states(2), states(2, seed=1), agent.initial_state(2))
        assert actions.shape == (2, 3) and np.isfinite(actions).all()
        agent.label(torch.from_numpy(states(4, 2)))

    bad, lines, worked = tracebacks(tmp_path, online, 'online', load_online, use, ONLINE_FORGERIES)
    assert not bad and len(lines) > 50, bad
    assert {name for name, _ in worked} <= {'agent/offline/has_dropout'}, worked


def test_forged_labeling_checkpoints_give_one_line_or_work(tmp_path, labels):
    bad, lines, worked = tracebacks(tmp_path, labels, 'labeling', load_labels,
                                    lambda labeling: labeling.search.residuals(labeling.search.probes[-1]),
                                    LABEL_FORGERIES)
    assert not bad and len(lines) > 20, bad
    assert not worked, worked


def test_map_of_objects_with_other_sizes_is_one_line():
    none = np.zeros((0, 1), np.int8)
    rows = np.zeros((2, 3), np.float32)
    saved = ObjectMap(
        scale=np.ones(3, np.float32), object_of=np.array([0, -1, -1], np.int32), level_objects=np.zeros(2, int),
        level_states=rows, sources=none, targets=none, placed_objects=np.zeros(0, np.int32),
        placed_configurations=none, placed_before=rows[:0], placed_after=rows[:0], move_timeout=5,
        start_states=rows).state_dict()
    assert ObjectMap.from_state_dict(saved).move_timeout == 5
    for name, value in [('scale', torch.ones(4)), ('level_objects', torch.tensor([0, 1])), ('object_of', None),
                        ('sources', torch.zeros(1, 1, dtype=torch.int8)), ('move_timeout', torch.tensor(-1)),
                        ('level_states', torch.full((2, 3), torch.nan))]:
        with pytest.raises(ValueError, match=f'`({name}|object_of|targets)` '):
            ObjectMap.from_state_dict(saved | {name: value})


@pytest.mark.parametrize('content, words', [
    ({}, '`a` is missing'), ({'a': 1, 'n': 2}, '`a` is int; it must be a tensor'),
    ({'a': torch.zeros(2, 3), 'n': True}, '`n` is bool'), ({'a': torch.zeros(2, 3), 'n': -1}, '`n` is -1'),
    ({'a': torch.zeros(2, 4), 'n': 2}, r'has the shape \(2, 4\); it must be \(K = 2, S = 3\)'),
    ({'a': torch.zeros(2, 3).double(), 'n': 2}, 'is of float64'),
])
def test_check_layout_names_the_entry(content, words):
    with pytest.raises(ValueError, match=words):
        check_layout(content, {'a': Tensor('float32', 'K S'), 'n': Number(int, least=0)}, S=3)


# Damaged files


def test_one_changed_bit_anywhere_is_one_line(tmp_path):
    """Also in the padding and the headers of the archive, and in the checksum itself."""
    path = tmp_path / 'last.pth'
    save_checkpoint(path, {'kind': 'labeling', 'values': [torch.rand(300), torch.arange(5), 'text']})
    whole = path.read_bytes()
    bits = range(8 * len(whole))
    for bit in [*random.Random(0).sample(bits, 100), *bits[:240:9], *bits[-800::5]]:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match='last.pth is not a readable OPSO checkpoint') as caught:
            load_checkpoint(path)
        assert '\n' not in str(caught.value) and 'weights_only' not in str(caught.value)


@pytest.mark.parametrize('content, words', [
    (b'', 'it has no checksum'), (b'\0' * 5000, 'it has no checksum'), (b'PK\3\4', 'it has no checksum'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n', 'git lfs pull'),
])
def test_files_that_are_no_checkpoint_name_the_way_out(tmp_path, content, words):
    path = tmp_path / 'last.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_checkpoint(path)
    assert 'a copy of the file or another checkpoint' in str(caught.value)
    (tmp_path / 'best_model.pth').touch()
    with pytest.raises(ValueError, match='use best_model.pth beside it'):
        load_checkpoint(path)


def test_a_checkpoint_without_checksum_is_refused(tmp_path):
    content = {'format': files.CHECKPOINT_FORMAT, 'kind': 'labeling'}
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='it has no checksum'):
        load_checkpoint(tmp_path / 'a.pth')
    torch.save(content | {'format': 3}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='has checkpoint format 3'):
        load_checkpoint(tmp_path / 'a.pth')
