"""Data-parallel training under torchrun: every process takes its share of one global batch, and the numbers are those
of one process with the whole batch. In a program that torchrun did not start, all of this does nothing.

    torchrun --nproc_per_node 2 offline_trainer.py --dataset antmaze-medium-navigate-v0

Losses are means over the rows of a process; where one depends on other rows (a sum of weights, negatives), it asks for
the batch-wide number here.
"""

import contextlib
import io
import os
import signal

import torch
import torch.distributed as dist

_alone = False


def world_size():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank():
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def processes(device):
    """Join the other processes of torchrun for the time of this context -> the device of this process."""
    if int(os.environ.get('WORLD_SIZE', 1)) < 2:
        yield device
        return
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone():
    """Inside, this process computes as if there were no other."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def my_rows(size):
    """-> slice of this process's rows of a batch of `size`."""
    share = size // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def ignore_signals():
    """For the processes behind process 0: they stop when it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def mean(value):
    """Mean of a tensor without gradient over the processes."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_info(info):
    """Means over the processes of a dict of scalars; of *_min and *_max the least and the greatest."""
    if world_size() == 1:
        return info
    values = torch.stack([value.detach() for value in info.values()])
    every = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(every, values)
    kinds = {'min': lambda v: v.amin(0), 'max': lambda v: v.amax(0)}
    every = torch.stack(every)
    return {name: kinds.get(name.rpartition('_')[2], lambda v: v.mean(0))(every[:, i]) for i, name in enumerate(info)}


def gather(value):
    """The rows of all processes, in order; the gradient goes back to the process a row came from."""
    return _Gather.apply(value) if world_size() > 1 else value


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        every = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(every, value.contiguous())
        return torch.cat(every)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def average_gradients(parameters):
    """Replace the gradients by their means over the processes, in one exchange."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_first(content=None):
    """What process 0 passes (tensors and builtins), in every process, on the CPU. Tensors travel as bytes: sent as they
    are, every process would put them on the GPU of process 0."""
    if world_size() == 1:
        return content

    buffer = io.BytesIO()
    if rank() == 0:
        torch.save(content, buffer)
    box = [buffer.getvalue()]
    device = torch.device('cuda', torch.cuda.current_device()) if dist.get_backend() == 'nccl' else None
    dist.broadcast_object_list(box, device=device)
    return torch.load(io.BytesIO(box[0]), map_location='cpu', weights_only=True)


def any_stops(stops):
    """Does any process want to stop? All get the same answer, so that none waits for one that has gone."""
    if world_size() == 1:
        return bool(stops)
    device = 'cuda' if dist.get_backend() == 'nccl' else 'cpu'
    return bool(mean(torch.tensor(float(bool(stops)), device=device)))
