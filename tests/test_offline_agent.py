"""The offline agent: each objective by hand, gradients, targets, updates and checkpoints."""

import copy
import dataclasses
from types import SimpleNamespace as Fields

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import soft_update
from offline_agent import OfflineAgent, expectile_loss
from support.files import load_checkpoint, save_checkpoint
from utils import linear_schedule, mean_of

OBJECTIVES = {  # each with the networks that it trains
    'critic': {'encoder', 'critic'},
    'value': {'encoder', 'value'},
    'proposer': {'proposer'},
    'infonce': {'encoder', 'contrast'},
    'alignment': {'encoder'},
    'state': {'encoder', 'next_state'},
    'reward': {'encoder', 'reward'},
}


@pytest.fixture
def agent(make_agent):
    return make_agent()


@pytest.fixture(params=['mamba', 'gru', 'mlp'])
def either_agent(make_agent, request):
    """Return an agent with each kind of encoder, whose targets differ from its networks."""
    agent = make_agent(encoder=request.param)
    with torch.no_grad():
        for p in agent.targets.parameters():
            p += 0.1 * torch.randn_like(p)
    return agent


@pytest.fixture
def batch(make_dataset):
    return make_dataset().sample(5, np.random.default_rng(0))


def snapshot(agent):
    """Return a copy of all that an agent consists of."""
    return copy.deepcopy({'nets': agent.nets.state_dict(), 'targets': agent.targets.state_dict(),
                          'optimizer': agent.optimizer.state_dict(), 'step': agent.step})


def objective(agent, name, batch):
    """Return the loss of an objective."""
    return getattr(agent, f'{name}_loss')(agent.encode(batch), batch)[0]


def cancels(name):
    """Whether a parameter is V's last bias, which cancels in the difference of embeddings up to rounding."""
    return name.startswith('value.goal.') and name.endswith('.6.bias')


def ensemble(*values):
    """Return a value network whose members return constants for all latents."""
    return lambda *latents: torch.stack([torch.full(latents[0].shape[:-1], v) for v in values])


def far(*distances):
    """Return embeddings (M, 2, 3, 4) at a distance from zero for each of the M members."""
    return torch.tensor(distances).view(-1, 1, 1, 1) * F.one_hot(torch.tensor(0), 4).expand(2, 3, 4)


# ----------------------------------------------------------------------------------------------------- losses
@pytest.mark.parametrize('expectile, minimiser', [(0.9, 0.862), (0.5, 0.0), (0.1, -0.862)])
def test_expectile_loss_is_minimised_by_the_expectile(expectile, minimiser):
    normal = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    predictions = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    losses = torch.stack([expectile_loss(p, normal, expectile) for p in predictions])
    assert abs(predictions[losses.argmin()].item() - minimiser) < 0.011


def test_expectile_loss_by_hand():
    prediction, target = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, -1.0, 1.0])
    assert expectile_loss(prediction, target, 0.9).item() == pytest.approx((0.9 * 4 + 0.1 * 1 + 0) / 3)


def test_critic_target_by_hand(agent, stub, make_config):
    """The target of Q(z, z', z_g) is reward_scale R + discounts mean V(z', z_g), V of the target."""
    z = torch.randn(2, 3, 32)
    latents = Fields(z=z, z_next=z + 1, z_goal=z + 2,
                     e_z_next=far(1.0, 3.0), e_z_goal=far(0.0, 0.0))  # V: -1 and -3
    rewards = torch.tensor([[-1.0, -2.0, 0.0]] * 2)
    batch = Fields(rewards=rewards, discounts=torch.tensor([[0.5, 0.25, 0.0]] * 2))
    agent.config = make_config(reward_scale=0.1)
    received = {}

    def critic(*inputs):
        received['critic'] = inputs
        return ensemble(0.0, 0.5)(*inputs)

    agent.nets['critic'] = stub(critic)
    loss, info = agent.critic_loss(latents, batch)
    targets = torch.tensor([-0.1 - 0.5 * 2, -0.2 - 0.25 * 2, 0.0])
    expected = 0.5 * (targets.square().mean() + (0.5 - targets).square().mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert received['critic'] == (latents.z, latents.z_next, latents.z_goal)
    assert info['q_mean'].item() == 0.25


def test_critic_target_does_not_bootstrap_at_the_goal(agent, batch):
    latents, losses = agent.encode(batch), []
    for factor in (0, 1):
        for distance in (0, 1e6):
            latents.e_z_next = latents.e_z_goal + distance
            changed = dataclasses.replace(batch, discounts=factor * batch.discounts)
            losses.append(agent.critic_loss(latents, changed)[0].item())
    assert losses[0] == losses[1] and losses[3] > 10 * losses[2]


def test_value_target_by_hand(agent, stub):
    """V(z, z_g) is regressed on the target of Q by the expectile loss."""
    latents = Fields(z=torch.randn(2, 3, 32), z_goal=torch.randn(2, 3, 32),
                     e_z_next=far(1.0, 3.0), e_z_goal=far(0.0, 0.0))  # V: -1 and -3
    batch = Fields(rewards=torch.full((2, 3), 80.0), discounts=torch.full((2, 3), 1.0))
    received = {}

    def value(*inputs):
        received['value'] = inputs
        return ensemble(1.0, 4.0)(*inputs)

    agent.nets['value'] = stub(value)
    loss, info = agent.value_loss(latents, batch)  # 0.05 * 80 - 2 = 2
    # one member is 1 below the target, the other 2 above it
    assert loss.item() == pytest.approx(0.5 * (0.9 * 1 + 0.1 * 4))
    assert received['value'] == (latents.z, latents.z_goal)
    assert (info['v_min'].item(), info['v_mean'].item(), info['v_max'].item()) == (1.0, 2.5, 4.0)


def test_proposer_target_by_hand(either_agent, batch):
    """The target of f_P is z', or the goal if it is nearer, both in V's embedding.

    The weights are min(exp(temperature (V(target, z_g) - V(z, z_g))), 100) over their mean. All networks but
    f_P are target networks.
    """
    agent, latents = either_agent, either_agent.encode(batch)
    agent.config.proposer_temperature = 10.0
    z, goal = latents.target_z, latents.proposer_goal
    z_next = target_latents(agent, batch)['z_next']
    V = agent.targets['value']
    loss, info = agent.proposer_loss(latents, batch)
    assert batch.proposer_near.any() and not batch.proposer_near.all()
    target = torch.where(batch.proposer_near.unsqueeze(-1), goal, z_next)
    weight = (10 * (V(target, goal) - V(z, goal)).mean(0)).exp().clamp(max=100)
    assert weight.max() == 100 and weight.min() < 0.1
    error = (V.embed(agent.nets['proposer'](z, goal)) - V.embed(target)).square().sum(-1).mean(0)
    assert loss.item() == pytest.approx(((weight * error).sum() / weight.sum()).item(), rel=1e-4)
    assert info['proposer_error'].item() == pytest.approx(error.mean().item(), rel=1e-4)


def target_latents(agent, batch):
    """Return z, z_next, z_goal and proposer_goal of the target encoder, (B, P, D) each."""
    encoder = agent.targets['encoder']
    encoded = encoder.encode_features(batch.observations)
    rows = torch.arange(len(encoded))[:, None]
    return {
        'z': encoded[rows, batch.positions],
        'z_next': encoded[rows, batch.next_positions],
        'z_goal': encoder.encode_features(batch.goals),
        'proposer_goal': encoder.encode_features(batch.proposer_goals),
    }


def test_embeddings_are_those_of_the_target_value(either_agent, batch):
    latents = either_agent.encode(batch)
    for name, raw in target_latents(either_agent, batch).items():
        embedded = getattr(latents, f'e_{name}')
        torch.testing.assert_close(embedded, either_agent.targets['value'].embed(raw))
        assert not embedded.requires_grad


def test_infonce_by_hand(agent):
    """Rows of the same window are no negatives."""
    agent.nets['contrast'] = torch.nn.Identity()
    batch = Fields(positions=torch.zeros(3, 2, dtype=torch.int64))
    context, later = torch.randn(3, 2, 32), torch.randn(3, 2, 32)
    rows = [(w, p) for w in range(3) for p in range(2)]
    losses = []
    for w, p in rows:
        others = [(v, q) for v, q in rows if v != w or q == p]
        own = others.index((w, p))
        forward = torch.stack([F.cosine_similarity(context[w, p], later[o], dim=0) / 0.1 for o in others])
        backward = torch.stack([F.cosine_similarity(context[o], later[w, p], dim=0) / 0.1 for o in others])
        losses += [-forward.log_softmax(0)[own] / 2, -backward.log_softmax(0)[own] / 2]
    loss, _ = agent.infonce_loss(Fields(state_latents=context, z_next=later), batch)
    assert loss.item() == pytest.approx(sum(losses).item() / 6, rel=1e-5)
    matched, info = agent.infonce_loss(Fields(state_latents=later, z_next=later), batch)
    assert matched < 0.05 and info['infonce_accuracy'] == 1


def test_losses_are_finite_without_future_goals(agent, batch):
    batch.future = torch.zeros_like(batch.future)
    assert objective(agent, 'alignment', batch).item() == 0
    loss, info = agent.total_loss(batch)
    loss.backward()
    assert all(value.isfinite().all() for value in info.values())
    assert all(p.grad.isfinite().all() for p in agent.nets.parameters() if p.grad is not None)


def test_alignment_by_hand(agent):
    z, step = torch.randn(2, 2, 32), torch.randn(2, 2, 32)
    future = torch.tensor([[True, True], [True, False]])
    for goal, expected in ((z + 3 * step, 0), (z - step, 2)):
        latents = Fields(z=z, z_next=z + step, z_goal=goal)
        loss, _ = agent.alignment_loss(latents, Fields(future=future))
        assert loss.item() == pytest.approx(expected, abs=1e-5)
    goal = z + step * torch.tensor([[1.0, -1], [1, -1]]).unsqueeze(-1)  # the last goal is not in the future
    loss, _ = agent.alignment_loss(Fields(z=z, z_next=z + step, z_goal=goal), Fields(future=future))
    assert loss.item() == pytest.approx(2 / 3, rel=1e-5)


def test_state_loss_by_hand(agent, stub, batch):
    """Average the loss over the positions of the context that have a next state, and over the sampled ones.

    With a prediction of 0 the error is s_{t+1}. States beyond the context are not encoded.
    """
    agent.nets['next_state'] = stub(lambda z: torch.zeros(*z.shape[:-1], 5))
    latents = agent.encode(batch)
    normal = agent.encoder.normalize(batch.observations)
    context = slice(1, agent.config.context_length + 1)
    assert latents.sequence.shape[1] == agent.config.context_length < normal.shape[1]
    sequence = normal[:, context][batch.valids[:, context]].square().mean()
    single = torch.stack([normal[b, batch.positions[b] + 1] for b in range(5)]).square().mean()
    expected = (sequence + single) / 2
    assert agent.state_loss(latents, batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_state_loss_predicts_from_the_sequence_and_from_single_states(agent, stub, batch):
    inputs = []

    def predict(z):
        inputs.append(z)
        return torch.zeros(*z.shape[:-1], 5)

    agent.nets['next_state'] = stub(predict)
    latents = agent.encode(batch)
    agent.state_loss(latents, batch)
    assert inputs[0] is latents.state_latents and torch.equal(inputs[1], latents.sequence)


@pytest.mark.parametrize('windows', [0, 2])
def test_sequence_windows_changes_the_state_loss_only(make_agent, batch, windows):
    """Without windows, next states are predicted from single states only."""
    whole, agent = make_agent(), make_agent(sequence_windows=windows)
    latents = agent.encode(batch)
    expected = whole.encode(batch).sequence[:windows].reshape(latents.sequence.shape)
    torch.testing.assert_close(latents.sequence, expected)
    ours, theirs = agent.total_loss(batch)[1], whole.total_loss(batch)[1]
    differing = {name for name, value in ours.items() if not torch.allclose(value, theirs[name], atol=1e-6)}
    assert differing == {'state_loss', 'total_loss'}

    target = agent.encoder.normalize(batch.observations)
    rows = torch.arange(len(target))[:, None]
    predicted = agent.nets['next_state'](latents.state_latents)
    single = (predicted - target[rows, batch.positions + 1]).square().mean()
    if windows:
        part = dataclasses.replace(batch, **{name: value[:windows] for name, value in vars(batch).items()})
        part_loss = make_agent().total_loss(part)[1]['state_loss']
        part_single = (predicted[:windows] - target[rows[:windows], part.positions + 1]).square().mean()
        torch.testing.assert_close(ours['state_loss'], part_loss + 0.5 * (single - part_single))
    else:
        torch.testing.assert_close(ours['state_loss'], single)


def test_losses_ignore_padding(either_agent, batch):
    agent = either_agent
    padding = ~batch.valids
    assert padding.any()
    before = agent.total_loss(batch)[1]
    batch.observations[padding] += 100
    after = agent.total_loss(batch)[1]
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_reward_loss_by_hand(agent, stub, batch):
    agent.nets['reward'] = stub(lambda x: torch.full((*x.shape[:-1], 1), 2.0))
    fraction = batch.at_goal.float().mean().item()
    expected = fraction * np.log1p(np.exp(-2)) + (1 - fraction) * np.log1p(np.exp(2))
    assert objective(agent, 'reward', batch).item() == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------- encoding
def test_encode_returns_latents_at_the_sampled_positions(either_agent, batch):
    """z, z' and goals are single states; the sequence latents depend on the history."""
    agent, latents = either_agent, either_agent.encode(batch)
    length = agent.config.context_length
    torch.testing.assert_close(latents.sequence, agent.encoder(batch.observations)[:, :length])

    rows = torch.arange(5)[:, None]
    encoded = agent.encoder.encode_features(batch.observations)
    torch.testing.assert_close(latents.z, encoded[rows, batch.positions])
    torch.testing.assert_close(latents.z_next, encoded[rows, batch.next_positions])
    torch.testing.assert_close(latents.z_goal, agent.encoder.encode_features(batch.goals))
    state_latents = agent.encoder.encode_state(batch.observations)
    torch.testing.assert_close(latents.state_latents, state_latents[rows, batch.positions])

    targets = target_latents(agent, batch)
    torch.testing.assert_close(latents.target_z, targets['z'])
    torch.testing.assert_close(latents.proposer_goal, targets['proposer_goal'])


def test_set_statistics_sets_encoder_and_target(agent, make_dataset):
    mean, std = make_dataset().statistics()
    slowness = make_dataset().slowness()
    assert slowness.min() < 0.9
    for encoder in (agent.encoder, agent.targets['encoder']):
        np.testing.assert_allclose(encoder.goal_weights, slowness, rtol=1e-5)
        np.testing.assert_allclose(encoder.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(encoder.std, std, rtol=1e-5)


# ----------------------------------------------------------------------------------------- gradients, updates
def test_total_loss_is_pure(either_agent, batch, assert_same):
    agent = either_agent
    agent.update(batch)
    before, rng, numpy_rng = snapshot(agent), torch.get_rng_state(), np.random.get_state()
    first, second = agent.total_loss(batch), agent.total_loss(batch)
    first[0].backward()
    assert first[0].item() == second[0].item() == second[1]['total_loss'].item()
    assert_same({k: v.detach() for k, v in first[1].items()}, {k: v.detach() for k, v in second[1].items()})
    assert_same(snapshot(agent), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_rng[1])


def test_objectives_of_weight_zero_are_not_computed(agent, batch, monkeypatch):
    whole = agent.total_loss(batch)[1]
    monkeypatch.setattr(agent.config, 'critic_weight', 0.0)
    monkeypatch.setattr(agent, 'critic_loss', None)
    loss, info = agent.total_loss(batch)
    assert set(whole) - set(info) == {'critic_loss', 'q_mean'}
    assert loss.item() == pytest.approx((whole['total_loss'] - whole['critic_loss']).item(), rel=1e-5)


def test_total_loss_is_the_weighted_sum(agent, batch):
    loss, info = agent.total_loss(batch)
    weights = {name: getattr(agent.config, f'{name}_weight', 1.0) for name in OBJECTIVES}
    assert len(set(weights.values())) > 2
    expected = sum(weight * info[f'{name}_loss'].item() for name, weight in weights.items())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_gradients_reach_only_the_networks_of_an_objective(either_agent, batch, name):
    agent = either_agent
    objective(agent, name, batch).backward()
    reached = {k for k, net in agent.nets.items()
               if any(p.grad is not None and (p.grad != 0).any() for p in net.parameters())}
    assert reached == OBJECTIVES[name]
    assert all(p.grad is None and not p.requires_grad for p in agent.targets.parameters())


def test_latents_of_targets_have_no_gradient(either_agent, batch):
    latents = either_agent.encode(batch)
    with_gradient = {name for name, value in vars(latents).items() if value.requires_grad}
    assert with_gradient == {'z', 'z_next', 'z_goal', 'sequence', 'state_latents'}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_gradient_steps_decrease_each_objective(agent, make_dataset, name):
    batch = make_dataset().sample(12, np.random.default_rng(0))
    optimizer, losses = torch.optim.Adam(agent.nets.parameters(), 3e-3), []
    for _ in range(40):
        loss = objective(agent, name, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize('encoder', ['mamba', 'gru', 'mlp'])
def test_update_moves_every_parameter_and_the_targets_by_target_rate(make_agent, make_dataset, encoder):
    agent, data, rng = make_agent(encoder=encoder, target_rate=0.02), make_dataset(), np.random.default_rng(0)
    begin = snapshot(agent)
    for _ in range(3):
        before = snapshot(agent)
        info = agent.update(data.sample(5, rng))
        assert all(type(value) is float for value in info.values()) and info['grad_norm'] > 0
        for name, net in agent.targets.items():
            for key, value in net.named_parameters():
                old, new = before['targets'][f'{name}.{key}'], agent.nets[name].get_parameter(key)
                torch.testing.assert_close(value, old + 0.02 * (new - old), rtol=1e-5, atol=1e-7)
    assert agent.step == 3
    for kind, net in (('nets', agent.nets), ('targets', agent.targets)):
        unchanged = [name for name, p in net.named_parameters() if torch.equal(p, begin[kind][name])]
        assert not [name for name in unchanged if not cancels(name)]
    training = [module for module in agent.nets.modules() if module.training]
    assert all(isinstance(module, torch.nn.GRU) for module in training), 'cuDNN needs it for gradients'


def test_update_clips_gradients(make_agent, batch):
    agent = make_agent(grad_clip=0.01)
    assert agent.update(batch)['grad_norm'] > 0.02  # the norm before clipping
    total = torch.stack([p.grad.square().sum() for p in agent.nets.parameters()]).sum().sqrt()
    assert total.item() == pytest.approx(0.01, rel=1e-3)


# ------------------------------------------------------------------------------------------------ checkpoints
def test_updates_after_a_checkpoint_are_bitwise_equal(agent, make_dataset, assert_same, tmp_path):
    data, rng = make_dataset(), np.random.default_rng(0)
    for _ in range(3):
        agent.update(data.sample(5, rng))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'offline', 'data': {}, 'agent': agent.state_dict()})
    torch.manual_seed(99)  # the loaded agent must not depend on it
    loaded = OfflineAgent.from_state_dict(load_checkpoint(tmp_path / 'last.pth', 'offline')['agent'])
    assert loaded.config == agent.config and loaded.step == 3
    assert_same(snapshot(loaded), snapshot(agent))
    for _ in range(2):
        batch = data.sample(5, rng)
        assert_same(agent.update(batch), loaded.update(batch))
    assert_same(snapshot(loaded), snapshot(agent))


def test_load_state_dict_rejects_another_observation_dim(agent, make_config):
    with pytest.raises(ValueError, match='5 dimensions.* 7'):
        OfflineAgent(7, make_config()).load_state_dict(agent.state_dict())


# ------------------------------------------------------------------------------------------------------ utils
def test_soft_update_moves_parameters_by_the_rate():
    target, source = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    old, new = copy.deepcopy(target), copy.deepcopy(source)
    soft_update(target, source, 0.25)
    torch.testing.assert_close(target.weight, 0.75 * old.weight + 0.25 * new.weight)
    torch.testing.assert_close(target.bias, 0.75 * old.bias + 0.25 * new.bias)
    assert torch.equal(source.weight, new.weight)
    soft_update(target, source, 1.0)
    torch.testing.assert_close(target.weight, source.weight)


def test_linear_schedule_interpolates_and_clamps():
    values = [linear_schedule(0.3, 0.05, 200, step) for step in (-5, 0, 200, 999)]
    assert values == pytest.approx([0.3, 0.3, 0.05, 0.05])
    assert linear_schedule(0.3, 0.1, 200, 50) == pytest.approx(0.25)
    assert linear_schedule(0.3, 0.1, 0, 0) == 0.3 and linear_schedule(0.3, 0.1, 0, 1) == pytest.approx(0.1)


def test_mean_of_averages_a_key_over_the_dicts_that_have_it():
    infos = [{'a': 1.0, 'b': torch.tensor(5.0)}, {'a': 2.0}, {'a': 6.0, 'c': 4}, {'b': torch.tensor(7.0)}]
    means = mean_of(infos, 'training/')
    assert means == {'training/a': 3.0, 'training/b': 6.0, 'training/c': 4.0}
    assert all(type(value) is float for value in means.values())
    assert mean_of([]) == {}
