"""Shall the labeler see where the robot is? Tried out on the agent's first own steps, at places that were held out.

A few thousand random steps visit little of a maze. A labeler that sees places learns what happened at these (a wall,
and the robot pushed against it all the time) and infers the same all around; one that does not see them gets along with
fewer steps. But where a slow dimension is part of the physics, as where a car points to, it has to be seen. Both are
trained on the steps that do not lie furthest along the slowest dimension, and the lower error in those that do decides.
"""

import copy
import dataclasses

import numpy as np
import torch

HELD_OUT = 0.2  # of the steps
BATCH = 512


@dataclasses.dataclass
class LabelerTrial:
    """What both labelers left unexplained of the actions at held-out places: mean squared errors, as shares of the
    actions' variance."""

    error_with_places: float
    error_without: float

    @property
    def places_help(self):
        return self.error_with_places < self.error_without

    def __str__(self):
        verdict = 'sees' if self.places_help else 'does not see'
        return (f'the labeler {verdict} where the robot is: R² of own actions at places held out '
                f'{1 - self.error_with_places:.2f} with places, {1 - self.error_without:.2f} without')


def try_labeler(agent, store, updates, seed):
    """-> LabelerTrial of an OnlineAgent on the LatentStore of its own steps, or None without updates or where these
    steps are too few or all at one place. Both labelers start from the agent's own weights, which stay as they are, and
    see the same batches."""
    rows = store.whole_steps
    if not updates or not len(rows):
        return None

    slowest = int(agent.encoder.slowness.argmax())
    place = store.dataset.observations[rows, slowest]
    is_far = place > np.quantile(place, 1 - HELD_OUT)
    far, near = rows[is_far], rows[~is_far]
    if not len(far):
        return None

    actions = torch.from_numpy(store.dataset.actions).to(agent.device)
    variance = actions[far].var(0, correction=0).mean().clamp(min=1e-8)
    errors = {}
    for sees_places in True, False:
        networks = train_labeler(agent, store, near, actions, sees_places, updates, seed)
        with torch.no_grad():
            steps = store.steps(far, agent.config.labeler_context)
            error = agent.labeler_error(steps, actions[far], networks, sees_places=sees_places)
        errors[sees_places] = (error / variance).item()
    return LabelerTrial(errors[True], errors[False])


def train_labeler(agent, store, rows, actions, sees_places, updates, seed):
    """-> {'labeler': a copy of the agent's labeler, trained on some rows (n,) of its own steps}."""
    networks = {'labeler': copy.deepcopy(agent.trained['labeler'])}
    optimizer = torch.optim.Adam(networks['labeler'].parameters(), lr=agent.config.lr, fused=True)
    rng = np.random.default_rng([seed, 6])
    generator = torch.Generator(agent.device).manual_seed(seed)

    for _ in range(updates):
        batch = rows[rng.integers(len(rows), size=BATCH)]
        steps = store.steps(batch, agent.config.labeler_context)
        loss = agent.labeler_error(steps, actions[batch], networks, generator, sees_places)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return networks
