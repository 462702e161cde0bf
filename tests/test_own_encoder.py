"""--encoder module:Class: the LSTM of docs/library.md, in training and from a checkpoint; refusals."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import Encoder
from offline_agent import OfflineAgent

PAGE = (Path(__file__).resolve().parent.parent / 'docs' / 'library.md').read_text(encoding='utf-8')
LSTM, = (text for text in re.findall(r'^```python\n(.*?)^```$', PAGE, re.M | re.S) if 'nn.LSTM' in text)


@pytest.fixture
def own_layer(tmp_path, monkeypatch):
    """own_layer(source, name) writes <name>.py into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    names = []

    def write(source, name='lstm'):
        (tmp_path / f'{name}.py').write_text(source)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_the_lstm_of_the_page_trains_and_comes_back_from_a_checkpoint(own_layer, make_config, make_dataset):
    own_layer(LSTM)
    agent = OfflineAgent(5, make_config(encoder='lstm:LSTM'))
    data = make_dataset()
    agent.set_statistics(*data.statistics(), data.slowness())
    before = agent.encoder.layers[0].lstm.weight_hh_l0.clone()
    assert np.isfinite(agent.update(data.sample(4, np.random.default_rng(0)))['total_loss'])
    assert not torch.equal(before, agent.encoder.layers[0].lstm.weight_hh_l0)

    again = OfflineAgent.from_state_dict(agent.state_dict())
    sequence = torch.from_numpy(data.observations[None, :12])
    with torch.no_grad():
        torch.testing.assert_close(again.encoder(sequence), agent.encoder(sequence))

        # step by step, as in acting
        state = again.encoder.initial_state(1)
        for t in range(12):
            z, state = again.encoder.step(sequence[:, t], state)
        torch.testing.assert_close(z, agent.encoder(sequence)[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind, change, words', [
    ('nowhere:LSTM', None, 'cannot import nowhere from'),
    ('lstm:GRU', None, 'there is no class `GRU` in'),
    ('lstm', None, 'must be mamba, gru, mlp or module:Class'),
    ('os:system', None, 'it is no class of torch.nn.Module'),
    ('lstm:LSTM', ('d_model, parameters', 'width'), 'it fails with TypeError'),
    ('lstm:LSTM', ('self.lstm(u)[0]', 'self.lstm(u)[0][..., :-1]'), 'the shape must stay'),
    ('lstm:LSTM', ('return self.lstm(u)[0]', 'return self.lstm(u.flip(1))[0].flip(1)'), '`step` gives other'),
    ('lstm:LSTM', ('.new_zeros(', '.new_ones('), 'must be a tuple of zeros'),
    ('lstm:LSTM', ('view(u.shape)', 'view(u.shape) + 1'), '`forward_single` differs'),
])
def test_what_is_no_layer_is_refused_in_one_line(own_layer, make_config, kind, change, words):
    own_layer(LSTM.replace(*change) if change else LSTM)
    with pytest.raises(ValueError) as error:
        make_config(encoder=kind).check()
        Encoder(5, d_model=32, headdim=16, kind=kind)
    text = str(error.value)
    assert text.startswith(f'--encoder {kind}: ') and words in text and '\n' not in text, text


def test_the_trainer_checks_the_class_first(own_layer):
    """A wrong class is found before any data are loaded."""
    import offline_trainer
    own_layer('')
    with pytest.raises(ValueError, match='--encoder lstm:LSTM: there is no class `LSTM`'):
        offline_trainer.main(['--encoder', 'lstm:LSTM', '--dataset_path', 'none.npz'])
