"""Which features of a state goals are about: dimensions of objects, places, or all dimensions."""

import numpy as np

from planning.objects import find_objects
from planning.slow_directions import Places, find_places
from planning.time_scales import has_slow_direction


def find_goal_weights(data, declared=()):
    """Return the Places of a TrajectoryDataset, and whether they are dimensions of objects.

    Without objects they are its places or, without a slow direction, all of its dimensions.

    Args:
        declared: dimensions that goals are about, if they are known. Without objects they have weight 1.
    """
    count = data.observations.shape[1]
    objects = find_objects(data, declared)
    if objects.any():
        return Places(np.eye(count), objects, []), True

    if len(declared) or has_slow_direction(data):
        places = find_places(data, declared)
    else:
        reason = 'no direction of the state is slow: all dimensions weigh alike'
        places = Places(np.eye(count), np.ones(count), [reason])
    places.weights[list(declared)] = 1
    return places, False
