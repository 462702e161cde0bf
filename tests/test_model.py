"""Mamba-2 against its slow reference and two independent ones, backends, encoders and heads."""

import importlib.util
import inspect
import sys
import types

import pytest
import torch

from mamba import Mamba2, choose_backend, ssd_reference, ssd_scan
from model import GoalValue, InverseDynamics, Proposer
from support.tolerances import IGNORED

DIM = 5  # of an observation


def scan_inputs(length, dtype=torch.float64):
    """Return x, dt, A, B, C of 2 sequences, 3 heads of 4 channels, 5 state dimensions, with gradients."""
    torch.manual_seed(length)
    x, dt = torch.randn(2, length, 3, 4), torch.rand(2, length, 3)
    A, B, C = -torch.rand(3) - 0.1, torch.randn(2, length, 5), torch.randn(2, length, 5)
    return [t.to(dtype).requires_grad_() for t in (x, dt, A, B, C)]


def value_and_gradients(function, inputs):
    """Return y and the gradients of its sum, weighted by fixed random numbers."""
    y = function(*inputs)
    torch.manual_seed(1)
    return [y, *torch.autograd.grad((y * torch.randn(y.shape, dtype=y.dtype)).sum(), inputs)]


def assert_close(results, expected, **tolerance):
    for i, (a, b) in enumerate(zip(results, expected, strict=True)):
        torch.testing.assert_close(a, b, msg=lambda text, i=i: f'item {i}: {text}', **tolerance)


def randomize(module):
    """Perturb all parameters: initial values of ones and zeros would hide a mix-up."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return randomize(Mamba2(d_model=16, d_state=8, headdim=8))


# -------------------------------------------------------------------------------------- state-space dual form
@pytest.mark.parametrize('length', [1, 7, 8, 9, 16, 31])
def test_ssd_scan_equals_the_recurrence(length):
    inputs = scan_inputs(length)
    for function in (lambda *t: ssd_scan(*t, chunk_size=8), ssd_scan):
        assert_close(value_and_gradients(function, inputs), value_and_gradients(ssd_reference, inputs),
                     rtol=1e-9, atol=1e-10)


def test_ssd_scan_has_finite_gradients_under_strong_decay():
    x, dt, A, B, C = (t.detach() for t in scan_inputs(40, torch.float32))
    inputs = [t.requires_grad_() for t in (x, dt * 20 + 20, A * 0 - 16, B, C)]
    results = value_and_gradients(lambda *t: ssd_scan(*t, chunk_size=16), inputs)
    assert all(t.isfinite().all() for t in results)
    assert_close(results, value_and_gradients(ssd_reference, inputs), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- Mamba-2 layer
@pytest.mark.parametrize('sizes', [
    dict(d_model=128), dict(d_model=24, d_state=6, d_conv=3, expand=3, headdim=12)])
def test_mamba2_has_the_parameters_of_mamba_ssm(sizes):
    d, n, p = sizes['d_model'], sizes.get('d_state', 16), sizes.get('headdim', 32)
    inner = sizes.get('expand', 2) * d
    conv, heads = inner + 2 * n, inner // p
    shapes = {name: tuple(t.shape) for name, t in Mamba2(**sizes).state_dict().items()}
    assert shapes == {
        'in_proj.weight': (2 * inner + 2 * n + heads, d),
        'conv1d.weight': (conv, 1, sizes.get('d_conv', 4)),
        'conv1d.bias': (conv,),
        'dt_bias': (heads,), 'A_log': (heads,), 'D': (heads,),
        'norm.weight': (inner,),
        'out_proj.weight': (d, inner)}
    assert sizes != dict(d_model=128) or shapes['in_proj.weight'][0] == 552


def test_mamba2_has_the_initial_values_of_mamba_ssm():
    torch.manual_seed(0)
    fresh = Mamba2(d_model=512, headdim=1)  # 1,024 heads
    dt = torch.nn.functional.softplus(fresh.dt_bias)
    assert 0.001 <= dt.min() < 0.0012 and 0.09 < dt.max() <= 0.1 and 0.008 < dt.median() < 0.0125
    assert 1 <= fresh.A_log.exp().min() < 1.2 and 15.8 < fresh.A_log.exp().max() <= 16.001
    assert (fresh.D == 1).all() and (fresh.norm.weight == 1).all()


@pytest.mark.parametrize('length', [3, 45])  # shorter than the convolution, longer than a chunk
def test_mamba2_forward_equals_unrolled_steps(layer, length):
    u = torch.randn(3, length, 16)
    state, outputs = layer.initial_state(3), []
    for t in range(length):
        out, state = layer.step(u[:, t], state)
        outputs.append(out)
    torch.testing.assert_close(layer(u), torch.stack(outputs, 1), rtol=1e-4, atol=1e-5)


def test_mamba2_forward_single_equals_forward_on_length_one(layer):
    u = torch.randn(3, 4, 16)
    torch.testing.assert_close(layer.forward_single(u), layer(u.flatten(0, 1).unsqueeze(1)).view(3, 4, 16),
                               rtol=1e-4, atol=1e-6)


def test_mamba2_is_causal(layer):
    u = torch.randn(2, 40, 16, requires_grad=True)
    for t in (1, 20, 33):
        later = torch.cat([u[:, :t], torch.randn(2, 40 - t, 16)], 1)
        torch.testing.assert_close(layer(later)[:, :t], layer(u)[:, :t], rtol=0, atol=1e-6)
        gradient, = torch.autograd.grad(layer(u)[:, :t].sum(), u)
        assert (gradient[:, t:] == 0).all() and (gradient[:, :t] != 0).any(2).all()


def test_mamba2_rejects_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match='64 must be a multiple of headdim 24'):
        Mamba2(d_model=32, headdim=24)


# -------------------------------------------------------------------------------- independent implementations
def test_mamba2_agrees_with_transformers(monkeypatch):
    pytest.importorskip('transformers')
    from transformers.models.mamba2 import modeling_mamba2

    # with mamba_ssm installed these names hold its CUDA kernels; __wrapped__ is plain torch
    for name in ('causal_conv1d_fn', 'mamba2_chunk_scan'):
        monkeypatch.setattr(modeling_mamba2, name, inspect.unwrap(getattr(modeling_mamba2, name)))
    torch.manual_seed(0)
    ours = randomize(Mamba2(d_model=32, d_state=12, d_conv=4, expand=2, headdim=16, chunk_size=8))
    config = modeling_mamba2.Mamba2Config(
        hidden_size=32, state_size=12, conv_kernel=4, expand=2, head_dim=16, num_heads=4, n_groups=1,
        chunk_size=16, layer_norm_epsilon=1e-5, num_hidden_layers=1)
    theirs = modeling_mamba2.Mamba2Mixer(config, layer_idx=0).eval()
    theirs.load_state_dict(ours.state_dict())
    u = torch.randn(2, 37, 32, requires_grad=True)
    results = []
    for layer in (ours, theirs):
        parameters = dict(sorted(layer.named_parameters())).values()
        results.append(value_and_gradients(lambda u, *_, layer=layer: layer(u), [u, *parameters]))
    assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.fixture
def import_mamba_ssm(monkeypatch):
    """Import a module of mamba_ssm; its PyTorch reference and its layer's constructor need no GPU."""
    if importlib.util.find_spec('mamba_ssm') is None:
        pytest.skip('mamba_ssm is not installed')
    if importlib.util.find_spec('selective_scan_cuda') is None:  # built with CUDA only; nothing here calls it
        monkeypatch.setitem(sys.modules, 'selective_scan_cuda', types.ModuleType('selective_scan_cuda'))

    def load(name):
        try:
            return importlib.import_module(f'mamba_ssm.{name}')
        except (ImportError, OSError, RuntimeError, AttributeError, NameError) as error:
            pytest.skip(f'mamba_ssm cannot be imported: {error}')

    return load


@pytest.mark.parametrize('length, their_chunk', [(5, 5), (32, 8), (45, 15)])  # theirs must divide the length
def test_ssd_scan_agrees_with_mamba_ssm(import_mamba_ssm, length, their_chunk):
    reference = import_mamba_ssm('ops.triton.ssd_combined').ssd_chunk_scan_combined_ref
    inputs = scan_inputs(length, torch.float32)
    assert_close(value_and_gradients(lambda *t: ssd_scan(*t, chunk_size=16), inputs),
                 value_and_gradients(lambda x, dt, A, B, C: reference(
                     x, dt, A, B.unsqueeze(2), C.unsqueeze(2), their_chunk), inputs), rtol=1e-4, atol=1e-5)


def test_mamba2_state_dict_loads_into_mamba_ssm(import_mamba_ssm, layer):
    theirs = import_mamba_ssm('modules.mamba2').Mamba2(16, d_state=8, headdim=8)
    theirs.load_state_dict(layer.state_dict(), strict=True)


# --------------------------------------------------------------------------------------------------- backends
def kernel(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
           cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float('inf')), return_final_states=False):
    """Play mamba_chunk_scan_combined, called without options: B and C have an axis of groups."""
    batch, length, heads, _ = x.shape
    assert dt.shape == (batch, length, heads) and A.shape == (heads,)
    assert B.shape == C.shape == (batch, length, 1, B.shape[-1])
    assert D is None and dt_bias is None and not dt_softplus and not return_final_states
    assert isinstance(chunk_size, int)
    return ssd_reference(x, dt, A, B[:, :, 0], C[:, :, 0])


@pytest.fixture
def install_kernel(monkeypatch):
    """Install a package mamba_ssm whose kernel is the given function."""

    def install(function):
        name = 'mamba_ssm'
        for part in ('', '.ops', '.triton', '.ssd_combined'):
            name += part
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setattr(sys.modules[name], 'mamba_chunk_scan_combined',
                            function, raising=False)

    return install


def test_choose_backend_uses_torch_on_a_cpu():
    for requested in ('torch', 'auto'):
        backend, why = choose_backend(requested, 'cpu')
        assert backend == 'torch' and 'torch' in why and 'cpu' in why
    with pytest.raises(ValueError, match='--mamba_backend mamba_ssm.*cpu.*--mamba_backend torch'):
        choose_backend('mamba_ssm', torch.device('cpu'))


class CompilationError(Exception):
    """A stand-in for Triton's error, which is a plain Exception."""


@pytest.mark.parametrize('error', [
    ImportError('no such library'),
    AssertionError(),
    AttributeError("module 'triton' has no attribute 'next_power_of_2'"),
    TypeError('unexpected keyword'),
    KeyError('num_warps'),
    CompilationError('at 12:4: dot'),
])
def test_choose_backend_rejects_a_kernel_that_raises(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr('mamba.load_mamba_ssm_scan', fail)
    backend, why = choose_backend('auto', 'cuda')
    assert backend == 'torch' and 'mamba_ssm not usable' in why and (str(error) or 'AssertionError') in why
    with pytest.raises(ValueError, match='--mamba_backend mamba_ssm cannot be used'):
        choose_backend('mamba_ssm', 'cuda')


@pytest.mark.parametrize('stop', [KeyboardInterrupt, SystemExit])
def test_choose_backend_does_not_swallow_interrupts(monkeypatch, stop):
    def interrupted():
        raise stop

    monkeypatch.setattr('mamba.load_mamba_ssm_scan', interrupted)
    with pytest.raises(stop):
        choose_backend('auto', 'cuda')


@pytest.mark.parametrize('function, accepted', [
    (kernel, True),
    (lambda *args, **options: 1.1 * kernel(*args, **options), False),
    (lambda x, dt, A, *args, **options: kernel(x, dt, A.detach() + 0 * A, *args, **options), False),
])
def test_choose_backend_accepts_kernels_that_pass_the_probe(monkeypatch, install_kernel, function, accepted):
    """Probe on the CPU: a correct kernel, one with wrong values, one with wrong gradients."""
    install_kernel(function)
    rand = torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *size, device=None: rand(*size))
    backend, why = choose_backend('auto', 'cuda')
    assert backend == ('mamba_ssm' if accepted else 'torch')
    assert accepted or 'differs' in why


def test_encoder_calls_the_kernel_in_its_layout(install_kernel, make_encoder):
    calls = []

    def count(*args, **options):
        calls.append(options)
        return kernel(*args, **options)

    install_kernel(count)
    encoder = make_encoder()
    fast = make_encoder(seed=1, backend='mamba_ssm')
    fast.load_state_dict(encoder.state_dict())
    observations = torch.randn(2, 40, DIM)
    torch.testing.assert_close(fast(observations), encoder(observations), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2  # one per layer
    fast.set_backend('torch')
    assert torch.equal(fast(observations), encoder(observations)) and len(calls) == 2


# ---------------------------------------------------------------------------------------------------- encoder
def unroll(encoder, observations, state=None):
    """Step through observations (B, L, S); return z (B, L, D) and the state."""
    state, outputs = state or encoder.initial_state(len(observations)), []
    for t in range(observations.shape[1]):
        z, state = encoder.step(observations[:, t], state)
        outputs.append(z)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize('kind', ['mamba', 'gru', 'mlp'])
def test_encoder_is_causal_and_all_parameters_have_gradients(make_encoder, kind):
    encoder = make_encoder(kind=kind)
    observations = torch.randn(2, 40, DIM, requires_grad=True)
    gradient, = torch.autograd.grad(encoder(observations)[:, :20].sum(), observations)
    assert (gradient[:, 20:] == 0).all() and (gradient[:, :20] != 0).any(2).all()
    encoder(observations).square().mul(torch.randn(32)).sum().backward()
    assert all((p.grad != 0).any() for p in encoder.parameters())


def test_encoder_normalises_observations(make_encoder):
    encoder, raw = make_encoder(), make_encoder()
    observations = torch.randn(2, 20, DIM)
    mean, std = torch.tensor([1.0, -2, 3, 0, 7]), torch.tensor([2.0, 0.5, 3, 10, 0])
    raw.set_statistics(mean.double().numpy(), std)  # arrays or tensors
    assert raw.std.tolist() == pytest.approx([2.0, 0.5, 3, 10, IGNORED])  # of a constant dimension
    observations[..., -1] = 0
    shifted = observations * raw.std + mean
    torch.testing.assert_close(raw.normalize(shifted), observations, rtol=1e-4, atol=1e-5)
    for function in ('forward', 'encode_features', 'encode_state'):
        torch.testing.assert_close(getattr(raw, function)(shifted), getattr(encoder, function)(observations),
                                   rtol=1e-4, atol=1e-4)
    z, _ = raw.step(shifted[:, 0], raw.initial_state(2))
    torch.testing.assert_close(z, encoder(observations)[:, 0], rtol=1e-4, atol=1e-4)
    assert {'mean', 'std'} <= set(raw.state_dict())


def test_encode_features_encodes_a_sequence_of_length_one(make_encoder):
    encoder = randomize(make_encoder())
    goals = torch.randn(3, 4, DIM)
    torch.testing.assert_close(encoder.encode_features(goals), encoder(goals.view(12, 1, DIM)).view(3, 4, 32),
                               rtol=1e-4, atol=1e-5)


def test_encode_features_weights_dimensions(make_encoder):
    encoder = randomize(make_encoder())
    goals, other = torch.randn(2, 4, DIM)
    weights = torch.tensor([1.0, 0.5, 0, 0, 1])
    encoder.set_statistics(torch.zeros(DIM), torch.ones(DIM), weights)
    torch.testing.assert_close(encoder.encode_features(goals), encoder.encode_state(goals * weights))
    mixed = torch.where(weights > 0, goals, other)
    torch.testing.assert_close(encoder.encode_features(mixed), encoder.encode_features(goals))
    assert not torch.allclose(encoder.encode_state(mixed), encoder.encode_state(goals), atol=1e-2)


def test_goal_features_of_dimensions_are_products_to_the_bit(make_encoder):
    encoder = make_encoder()
    mean, std, weights = torch.randn(DIM), torch.rand(DIM) + 0.5, torch.rand(DIM)
    encoder.set_statistics(mean, std, weights)
    states = 100 * torch.randn(50, DIM)
    assert torch.equal(encoder.goal_features(states), (states - mean) / std * weights)


def test_goal_features_are_projections_on_goal_directions(make_encoder):
    encoder = make_encoder()
    directions = torch.randn(DIM, DIM)
    weights = torch.tensor([1.0, 0.5, 0, 0, 1])
    encoder.set_statistics(torch.zeros(DIM), torch.ones(DIM), weights, directions)
    states = torch.randn(4, 3, DIM)
    torch.testing.assert_close(encoder.goal_features(states), states @ (directions * weights))
    assert not encoder.goal_features(states)[..., 2:4].any()


@pytest.mark.parametrize('kind', ['gru', 'mlp'])
def test_gru_and_mlp_encoders_have_as_many_parameters_as_mamba(make_encoder, kind):
    def count(encoder):
        return sum(p.numel() for p in encoder.parameters())

    sizes = dict(d_model=128, d_state=16, headdim=32)
    assert count(make_encoder(kind=kind, **sizes)) == pytest.approx(count(make_encoder(**sizes)), rel=0.01)


def test_gru_layers_stay_in_training_mode(make_encoder):
    encoder = make_encoder(kind='gru').train().eval()  # agents stay in eval mode
    assert all(layer.gru.training for layer in encoder.layers), 'cuDNN has gradients in training mode only'


def test_mlp_encoder_depends_on_single_states(make_encoder):
    encoder = make_encoder(kind='mlp')
    observations = torch.randn(2, 9, DIM)
    torch.testing.assert_close(encoder(observations), encoder.encode_state(observations))


@pytest.mark.parametrize('kind', ['mamba', 'gru', 'mlp'])
@pytest.mark.parametrize('context', [12, 7, 2, 1])
def test_step_equals_forward_since_the_restart_of_the_older_stream(make_encoder, context, kind):
    encoder = randomize(make_encoder(context_length=context, kind=kind))
    observations = torch.randn(2, 3 * context + 2, DIM)
    z, _ = unroll(encoder, observations)
    restarts = sorted({*range(0, 99, context), *range(context // 2, 99, context)})
    memories = []
    for t in range(observations.shape[1]):
        begin = 0 if t < context else next(r for r in restarts if t - r < context)
        memories.append(t - begin + 1)
        expected = encoder(observations[:, begin:t + 1])[:, -1]
        torch.testing.assert_close(z[:, t], expected, rtol=1e-4, atol=2e-5)
    assert max(memories) == context and min(memories[context:]) >= context / 2


def test_step_does_not_depend_on_states_before_the_context(make_encoder):
    encoder = make_encoder(context_length=12)
    observations = torch.randn(2, 40, DIM)
    other = torch.cat([torch.randn(2, 15, DIM), observations[:, 15:]], 1)
    (z, _), (z_other, _) = (unroll(encoder, o) for o in (observations, other))
    assert torch.equal(z[:, 26:], z_other[:, 26:])  # the last state that differs, 14, is 12 steps back
    assert not torch.isclose(z[:, 15:18], z_other[:, 15:18]).all(-1).any()  # within the context


@pytest.mark.parametrize('kind', ['mamba', 'gru'])
def test_encoder_state_reset_clears_only_the_given_rows(make_encoder, kind):
    encoder = make_encoder(kind=kind)
    past, observations = torch.randn(3, 17, DIM), torch.randn(3, 30, DIM)
    _, state = unroll(encoder, past)
    kept, _ = unroll(encoder, observations, state)
    reset, _ = unroll(encoder, observations, state.reset(torch.tensor([False, True, False])))
    fresh, _ = unroll(encoder, observations)
    assert torch.equal(reset[[0, 2]], kept[[0, 2]])
    torch.testing.assert_close(reset[1], fresh[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept[1, 0], fresh[1, 0], atol=1e-3)


# ------------------------------------------------------------------------------------------------------ heads
@pytest.mark.parametrize('head, n_latents, shape', [
    (GoalValue(8, 16, n_inputs=2, n_ensemble=3, embedding_dim=4), 2, (3, 4, 6)),
    (GoalValue(8, 16, n_inputs=3, embedding_dim=4), 3, (2, 4, 6)),
    (Proposer(8, 16), 2, (4, 6, 8)),
    (InverseDynamics(2 * 8, 5, 16), 2, (4, 6, 5)),
    (InverseDynamics(3 * 8, 5, 16), 3, (4, 6, 5)),
])
def test_heads_have_gradients_for_all_parameters_and_inputs(head, n_latents, shape):
    torch.manual_seed(0)
    latents = [torch.randn(4, 6, 8, requires_grad=True) for _ in range(n_latents)]
    out = head(*latents)
    assert out.shape == shape
    (out * torch.randn_like(out)).sum().backward()
    unused = [name for name, p in head.named_parameters() if (p.grad == 0).all()]
    # V embeds both inputs by one network, so that its last bias cancels (up to rounding)
    assert all('goal' in name and name.endswith('6.bias') for name in unused)
    assert all((t.grad != 0).any() for t in latents)


def test_goal_value_members_differ():
    one, two = GoalValue(8, 16)(torch.randn(10, 8), torch.randn(10, 8))
    assert not torch.isclose(one, two).any()


def test_goal_value_is_minus_the_distance_of_embeddings():
    z, z_next, z_goal = torch.randn(3, 10, 8)
    V, Q = GoalValue(8, 16, embedding_dim=4), GoalValue(8, 16, n_inputs=3, embedding_dim=4)
    assert V.embed(z).shape == (2, 10, 4)
    torch.testing.assert_close(V(z, z_goal), -torch.linalg.norm(V.embed(z) - V.embed(z_goal), dim=-1),
                               rtol=1e-3, atol=2e-3)
    source = torch.stack([f(torch.cat([z, z_next], -1)) for f in Q.source])
    torch.testing.assert_close(Q(z, z_next, z_goal), -torch.linalg.norm(source - Q.embed(z_goal), dim=-1),
                               rtol=1e-3, atol=2e-3)
    at_goal = z.clone().requires_grad_()
    value = V(at_goal, at_goal.detach())
    assert (value <= 0).all() and (value > -2e-3).all()
    assert torch.autograd.grad(value.sum(), at_goal)[0].isfinite().all()  # a plain root has none at zero


def test_proposer_adds_a_step_to_z():
    proposer = Proposer(8, 16)
    torch.nn.init.zeros_(proposer.net[-1].weight)
    torch.nn.init.ones_(proposer.net[-1].bias)
    z = torch.randn(10, 8)
    torch.testing.assert_close(proposer(z, torch.randn(10, 8)), z + 1)
