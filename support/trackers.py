"""TensorBoard and Weights & Biases, which log the rows of the CSV on request; one that fails is left out.

Neither package is imported unless its flag is given.
"""

import importlib.util
import os
import secrets

from support.progress import warn

INSTALL = {'tensorboard': 'pip install tensorboard',
           'wandb': 'pip install wandb (then wandb login, or WANDB_MODE=offline)'}
WAYS_OUT = {'tensorboard': 'repair the folder', 'wandb': 'wandb login, or WANDB_MODE=offline'}


def check_trackers(names):
    """Raise ValueError for a tracker whose package is not installed; imports nothing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f'--{name} needs its package: {INSTALL[name]}; or leave the flag out, '
                             'the CSV is always written')


def open_trackers(names, folder, run_name, flags, first_step):
    """Open trackers whose files go to `folder`/<name>/.

    A resumed run continues the same curve and replaces its points after `first_step`.

    Args:
        names: of trackers, 'tensorboard' or 'wandb'.
        folder: of the run.
        run_name: title of the run.
        flags: {name: value}, to be logged.
        first_step: step at which the run starts or resumes.

    Returns:
        list of functions (step, {name: number}), one per tracker.

    Raises:
        ValueError: a package is missing or broken, or its server or login fails.
    """
    check_trackers(names)
    makers = {'tensorboard': _tensorboard, 'wandb': _wandb}
    trackers = []
    for name in names:
        try:
            log = makers[name](folder / name, run_name, flags, first_step)
        except ImportError as error:
            raise ValueError(f'a package of {name} cannot be imported ({error}); install it again') from error
        except Exception as error:  # wandb has errors of its own for logins and servers
            reason = (str(error) or repr(error)).splitlines()[0]
            raise ValueError(f'--{name} cannot start ({reason}): {WAYS_OUT[name]}, or leave the flag out; the '
                             'CSV is always written') from error
        trackers.append(_keep_running(name, log))
    return trackers


def _keep_running(name, log):
    """Return a function that calls `log` until it fails: a run goes on without a tracker, with one warning."""
    failed = False

    def log_while_it_works(step, metrics):
        nonlocal failed
        if failed:
            return
        try:
            log(step, metrics)
        except Exception as error:  # disks, networks and servers; each package has its own types
            failed = True
            cause = (str(error).splitlines() or [''])[0]
            warn(f'warning: --{name} logs no more ({type(error).__name__}: {cause}); the CSV has all rows')

    return log_while_it_works


def _tensorboard(folder, run_name, flags, first_step):
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
    writer.add_text('flags', '\n'.join(f'    {name}: {value}' for name, value in flags.items()))

    def log(step, metrics):
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # so that a kill loses no rows

    return log


def _wandb(folder, run_name, flags, first_step):
    import wandb
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / 'run_id.txt'
    if not (first_step and known.exists()):
        known.write_text(secrets.token_hex(4), encoding='utf-8')
    project = flags.get('wandb_project') or os.environ.get('WANDB_PROJECT') or 'opso'
    tags = [tag.strip() for tag in flags.get('wandb_tags', '').split(',') if tag.strip()]
    run = wandb.init(project=project, group=flags.get('wandb_group') or None, tags=tags or None, name=run_name,
                     id=known.read_text(encoding='utf-8'), resume='allow', dir=str(folder.parent), config=flags)
    run.define_metric('*', step_metric='step')  # its own step cannot go back when a run is resumed

    def log(step, metrics):
        run.log({**metrics, 'step': step})

    return log
