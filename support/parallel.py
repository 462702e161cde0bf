"""Data-parallel training under torchrun. In a program that torchrun did not start, all of this does nothing.

    torchrun --nproc_per_node 2 offline_trainer.py --dataset antmaze-medium-navigate-v0

Every process takes its share of one global batch, and the numbers are those of one process with the whole batch: losses
are means over the rows of a process, and a loss that depends on other rows (a sum of weights, negatives) gets the
batch-wide number from here.
"""

import contextlib
import io
import os
import signal
import sys

import torch
import torch.distributed as dist

_alone = False  # see `alone`


def world_size():
    """Number of processes that train together; 1 without torchrun, and inside `alone`."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def rank():
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def processes(device):
    """Join the other processes of torchrun inside this context -> the torch.device of this process."""
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
    """Inside this context, the process computes as if there were no others."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def my_rows(size):
    """-> slice of this process's rows of a batch of `size`, a multiple of the number of processes."""
    share = size // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def ignore_signals():
    """For all processes but process 0: they stop when it does (see `any_stops`)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def leave():
    """End this process, which is not process 0 and has nothing to write. At once: it ends before process 0 does, and
    the threads of its connections, taken down with the interpreter, now and then abort it ("terminate called without
    an active exception"), by which torchrun would call the whole run failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def mean(value):
    """Mean of a tensor over the processes; the result carries no gradient (with one process: the tensor itself)."""
    if world_size() == 1:
        return value

    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_info(info):
    """Means over the processes of a dict of 0-d tensors; for names in _min and _max, the least and the greatest."""
    if world_size() == 1:
        return info

    values = torch.stack([value.detach() for value in info.values()])
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    gathered = torch.stack(gathered)  # (processes, names)

    result = {}
    for i, name in enumerate(info):
        if name.endswith('_min'):
            result[name] = gathered[:, i].amin(0)
        elif name.endswith('_max'):
            result[name] = gathered[:, i].amax(0)
        else:
            result[name] = gathered[:, i].mean(0)
    return result


def gather(value):
    """The rows of all processes, in order of rank: (rows, ...) -> (processes x rows, ...). The gradient of a row goes
    back to the process it came from."""
    return _Gather.apply(value) if world_size() > 1 else value


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        gathered = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(gathered, value.contiguous())
        return torch.cat(gathered)

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

    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_first(content=None):
    """-> what process 0 passes as `content` (tensors and builtins), in every process, on the CPU.

    Tensors travel as bytes: sent as tensors, they would land on the GPU of process 0 in every process.
    """
    if world_size() == 1:
        return content

    buffer = io.BytesIO()
    if rank() == 0:
        torch.save(content, buffer)
    box = [buffer.getvalue()]

    device = None
    if dist.get_backend() == 'nccl':
        device = torch.device('cuda', torch.cuda.current_device())
    dist.broadcast_object_list(box, device=device)
    return torch.load(io.BytesIO(box[0]), map_location='cpu', weights_only=True)


def any_stops(stops):
    """Does any process want to stop? All get the same answer, so that none waits for one that has left."""
    if world_size() == 1:
        return bool(stops)

    device = 'cuda' if dist.get_backend() == 'nccl' else 'cpu'
    share = mean(torch.tensor(float(bool(stops)), device=device))
    return bool(share)
