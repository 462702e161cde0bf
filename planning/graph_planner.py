"""Planning on the data's own map: what a regression smooths over, trajectories that were walked cannot.

V says how far apart two places are in time, but as a smooth function it sees through thin walls, and whoever climbs it
stays behind one. A `StateMap` is a graph instead: its nodes are clusters of states, its edges lead where trajectories
of the data went within `hop` steps, and the way to a goal is a shortest path (SoRB, Eysenbach et al. 2019, and SGM,
Laskin et al. 2020, plan so with actions and learned distances; here neither is needed).

    nodes     k-means over states seen through the encoder's slowness: a node is a place, not a posture
    edges     u -> v: somewhere in the data a state of u was followed, `hop` steps later, by one of v
    near      u is near v: it was followed by v within a hop, so that whoever is in u can head for a goal in v
    cost      the observed steps; more for an edge that was hardly ever seen
    gate      where the data jump (a teleporter), and jump_model decides where that ends: here and there, so often
    distance  Dijkstra's, from the goal's node over reversed edges; where there are gates, the steps that an expected
              value stands for: to land where no way leads on is worth nothing. Kept for the goals asked for last
    waypoint  what is headed for: the next node's state or the goal; of a way that only leads back to where one set out
              for it, no notice is taken for a hop
"""

import functools
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree

NO_PATH = -1  # in `StateMap.route`, instead of the next node
AT_GOAL = -2

HOP_FRACTION = 0.6  # of `transition_steps`, the farthest z' that I is trained on: 15 of 25, measured in results/README
COVERAGE = 0.2  # mean distance of states to their node, in median displacements over a hop
MIN_NODES = 250
MAX_NODES = 4000
CLUSTERED_STATES = 40_000  # drawn from the data for k-means
SAMPLED_STEPS = 100_000
FAR = 2.0  # a state further than so many node radii from every node is not on the map
MIN_CROSSINGS = 2  # crossings that make an edge an ordinary one
RARE_EDGE_PENALTY = 3.0  # of an edge with fewer, in ordinary ones: taken only where nothing better leads on
STATIONARY_FRACTION = 0.2  # what comes less far in a hop than this share of what the fastest tenth does, stands
JUMP = 7.0  # a step that changes some number so many times more than 99 % of all do is a jump: a teleporter, not a walk
PLANNING_DISCOUNT = 0.9999  # discount of a step where jump_model decides: to arrive counts for more than when
CONVERGED = 1e-7  # what a round of value iteration changes at the end
KEPT_GOALS = 128  # routes that a map remembers
ROWS_AT_ONCE = 1 << 18


class GraphPlanState(NamedTuple):
    """What B episodes head for, and for how many steps each has kept to it against the plan."""

    targets: np.ndarray  # (B,) int, nodes, AT_GOAL or NO_PATH
    kept: np.ndarray  # (B,) int

    def forget(self, rows):
        """rows (B,) bool -> the GraphPlanState in which these episodes head for nothing yet."""
        return GraphPlanState(np.where(rows, NO_PATH, self.targets), np.where(rows, 0, self.kept))


class JumpModel(NamedTuple):
    """Gates: where the data jump, and chance decides where to. J pairs of a node from which one can go through a gate
    and its number; P of a gate's number and a node in which one may land, and how likely that is: for each gate these
    add up to 1."""

    gate_nodes: np.ndarray  # (J,) int32
    gate_numbers: np.ndarray  # (J,) int32
    landing_numbers: np.ndarray  # (P,) int32
    landing_nodes: np.ndarray  # (P,) int32
    landing_probs: np.ndarray  # (P,) float32

    @classmethod
    def none(cls):
        """-> of data in which nobody jumps."""
        integers = np.zeros(0, np.int32)
        return cls(integers, integers, integers, integers, np.zeros(0, np.float32))


class StateMap:
    """A graph of the states of the data and the shortest paths on it.

    mean, scale (S,): a state s lies at (s - mean) * scale; centers (K, S): nodes there; states (K, S): the state of the
    data nearest to each, raw; radius: distance within which 99.9 % of the data lie from their node, at least the usual
    gap between nodes; sources, targets (E,) nodes and costs (E,) of the edges, in environment steps; near_sources,
    near_targets (M,): the nodes that are near others; jump_model: a JumpModel.
    """

    def __init__(self, mean, scale, centers, states, radius, sources, targets, costs, near_sources, near_targets, hop,
                 jump_model=None):
        self.mean = mean
        self.scale = scale
        self.centers = centers
        self.states = states
        self.radius = float(radius)
        self.sources = sources
        self.targets = targets
        self.costs = costs
        self.near_sources = near_sources
        self.near_targets = near_targets
        self.hop = int(hop)
        self.jump_model = jump_model or JumpModel.none()

        self._seen = scale > 1e-3 * scale.max()  # dimensions that nearly never decide are left out of the look-up
        self._tree = KDTree(centers[:, self._seen])
        # coo_array would add up the costs of an edge given twice; `from_data` gives each one once
        shape = len(centers), len(centers)
        self._reversed = coo_array((costs, (targets, sources)), shape=shape).tocsr()
        self._near = coo_array((np.ones(len(near_sources), bool), (near_targets, near_sources)), shape=shape).tocsr()
        self._kept_route = functools.lru_cache(KEPT_GOALS)(self._find_route)

    @classmethod
    def from_data(cls, data, mean, scale, hop=0, nodes=0, seed=0):
        """The map of a `TrajectoryDataset`. `mean`, `scale` (S,) place its states, see above; `hop`: steps along an
        edge, 0 for a share of the data's `transition_steps`; `nodes`: how many, 0 for as many as cover the data
        (`COVERAGE`)."""
        rng = np.random.default_rng([seed, 7])
        hop = hop or max(1, round(HOP_FRACTION * data.transition_steps))
        observations = data.observations
        count = len(data)
        mean, scale = (np.asarray(a, np.float32) for a in (mean, scale))

        def place(rows):
            return (observations[rows] - mean) * scale

        chosen = rng.choice(count, CLUSTERED_STATES, replace=False) if count > CLUSTERED_STATES else np.arange(count)
        # with fewer states to a node than a hop has steps, most hops would begin and end in nodes of their own
        most = nodes or min(MAX_NODES, max(2, count // hop))
        spacing = COVERAGE * typical_displacement(place, data.end_of, hop)
        centers = cluster(place(chosen), nodes, spacing, rng, most)

        # piece by piece: the places of all states would take as much memory as the data
        seen = scale > 1e-3 * scale.max()
        tree = KDTree(centers[:, seen])
        distances = np.empty(count, np.float32)
        labels = np.empty(count, np.int32)
        strides = np.zeros(count, np.float32)  # how far the step from each row leads
        for begin in range(0, count, ROWS_AT_ONCE):
            places = place(slice(begin, min(begin + ROWS_AT_ONCE + 1, count)))
            rows = slice(begin, begin + ROWS_AT_ONCE)
            distances[rows], labels[rows] = tree.query(places[:ROWS_AT_ONCE, seen])
            strides[begin:begin + len(places) - 1] = np.linalg.norm(np.diff(places, axis=0), axis=1)

        nearest = np.lexsort((distances, labels))  # by node, the nearest state of each first
        rows = nearest[np.searchsorted(labels[nearest], np.arange(len(centers)))]
        # where nodes are as many as states, none is off its node: then it is the gap between nodes that counts
        radius = max(np.quantile(distances, 0.999), typical_gap(centers))
        jumps = find_jumps(observations, strides, data.end_of, seen)
        edges = find_edges(jumps, labels, data.end_of, hop)
        near = find_near(jumps, labels, data.end_of, hop)
        gates = find_gates(place(np.flatnonzero(jumps))[:, seen], strides[jumps])
        jump_model = estimate_jumps(jumps, gates, labels, data.end_of, hop)
        return cls(mean, scale, centers, observations[rows].copy(), radius, *edges, *near, hop, jump_model)

    def __len__(self):
        return len(self.centers)

    def locate(self, observations):
        """observations (B, S) raw -> nodes (B,), the nearest ones; -1 for states that are far from all of them."""
        places = (np.asarray(observations, np.float32) - self.mean) * self.scale
        distances, nodes = self._tree.query(places[:, self._seen])
        return np.where(distances <= FAR * self.radius, nodes, -1)

    def distances(self, node):
        """-> (K,) steps from every node to `node`, inf where no path leads."""
        return self._paths_to(node)[0]

    def _paths_to(self, node):
        """-> distances (K,) to `node`, and following (K,): from each node the next one on the way, negative where none
        leads there. The last part of every way is from a near node: edges are a hop long, and by them alone a goal
        that is nearer could only be reached by going away from it first."""
        near = self._near.indices[self._near.indptr[node]:self._near.indptr[node + 1]]
        if len(self.jump_model.gate_nodes):
            return self._paths_with_jumps(node, near)
        distances, following, _ = dijkstra(self._reversed, indices=[node, *near], min_only=True,
                                           return_predecessors=True)
        distances += self.hop
        distances[node] = 0
        following[near] = node
        return distances, following

    def _paths_with_jumps(self, node, near):
        """As `_paths_to`, by value iteration (Bellman 1957): a node is worth the discounted chance of arriving from it
        by the best of its edges, or by its gate, whose worth is the mean of its landings'. Who heads for where a gate
        leads goes through it."""
        jump_model = self.jump_model
        hop_worth = PLANNING_DISCOUNT ** self.hop
        edge_worths = PLANNING_DISCOUNT ** self.costs.astype(np.float64)
        worth = np.zeros(len(self))
        worth[near] = hop_worth
        worth[node] = hop_worth

        changed = True
        while changed:
            walked = np.zeros(len(self))
            np.maximum.at(walked, self.sources, edge_worths * worth[self.targets])
            landed = jump_model.landing_probs * worth[jump_model.landing_nodes]
            gates = np.bincount(jump_model.landing_numbers, landed)
            through = hop_worth * gates[jump_model.gate_numbers]
            jumped = np.zeros(len(self))
            np.maximum.at(jumped, jump_model.gate_nodes, through)

            new = np.maximum(worth, np.maximum(walked, jumped))
            changed = (new - worth).max() > CONVERGED
            worth = new

        following = np.full(len(self), NO_PATH)
        order = np.argsort(edge_worths * worth[self.targets], kind='stable')  # of each node's edges the best comes last
        following[self.sources[order]] = self.targets[order]

        order = np.argsort(landed, kind='stable')
        best_landing = np.zeros(len(gates), int)
        best_landing[jump_model.landing_numbers[order]] = jump_model.landing_nodes[order]
        better = through > walked[jump_model.gate_nodes]
        following[jump_model.gate_nodes[better]] = best_landing[jump_model.gate_numbers[better]]

        following[near] = node
        following[worth == 0] = NO_PATH
        following[node] = NO_PATH

        with np.errstate(divide='ignore'):
            distances = np.log(worth) / np.log(PLANNING_DISCOUNT)
        distances[near] = self.hop  # not a rounding more
        distances[node] = 0
        return distances, following

    def route(self, node):
        """The way to the goal's `node` (-1: it is off the map) -> (K + 1,) int: from each node the next one to head
        for, AT_GOAL within one hop of the goal, NO_PATH where none leads there; the last entry, which index -1 finds,
        is for whoever is off the map."""
        return self._kept_route(int(node))

    def _find_route(self, node):
        route = np.full(len(self) + 1, NO_PATH, np.int32)
        if node >= 0:
            distances, following = self._paths_to(node)
            connected = np.isfinite(distances)
            route[:-1][connected] = following[connected]
            route[:-1][distances <= self.hop] = AT_GOAL
        return route

    def routes(self, goals):
        """goals (B, S) raw -> (B, K + 1): `route` to each of them."""
        return np.stack([self.route(node) for node in self.locate(goals)])

    def no_pursuit(self, size):
        """-> the GraphPlanState of `size` episodes that head for nothing yet."""
        return GraphPlanState(np.full(size, NO_PATH), np.zeros(size, int))

    def waypoints(self, observations, goals, routes, pursuit):
        """observations, goals (B, S) raw, routes of these goals (B, K + 1), the GraphPlanState of the step before -> states
        (B, S) to head for, raw: the next node's, or the goal; found (B,) bool, false where no path leads; the new
        GraphPlanState.

        An edge is a move of a hop. Who follows it crosses other nodes, and where edges are few the way from such a node
        may lead back to where the edge begins: he would go back and forth for ever. So he keeps to his target where the
        way leads to a node from which he would head for the same one; but for a hop at most, for there may be a wall
        before it.
        """
        nodes = self.locate(observations)
        rows = np.arange(len(nodes))
        named = routes[rows, nodes]
        leads_back = (named >= 0) & (routes[rows, named] == pursuit.targets)
        keeps = leads_back & (pursuit.kept < self.hop)

        targets = np.where(keeps, pursuit.targets, named)
        states = np.where((targets == AT_GOAL)[:, None], goals, self.states[np.maximum(targets, 0)])
        return states, targets != NO_PATH, GraphPlanState(targets, np.where(keeps, pursuit.kept + 1, 0))

    def path(self, start, goal):
        """-> list of nodes from the node `start` to the node `goal`; empty where there is no path, or with -1 for
        either."""
        if min(start, goal) < 0:
            return []
        _, following = self._paths_to(goal)
        nodes = [int(start)]
        while nodes[-1] != goal:
            if following[nodes[-1]] < 0:
                return []
            nodes.append(int(following[nodes[-1]]))
        return nodes

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """-> tensors and numbers from which `from_state_dict` rebuilds this map exactly."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ARRAYS}
        arrays |= {name: torch.from_numpy(array) for name, array in self.jump_model._asdict().items()}
        return arrays | {'radius': self.radius, 'hop': self.hop}

    @classmethod
    def from_state_dict(cls, saved):
        if 'near_sources' not in saved:  # maps from before there were near nodes
            direct = saved['costs'] <= saved['hop']
            saved = saved | {'near_sources': saved['sources'][direct], 'near_targets': saved['targets'][direct]}
        arrays = {name: saved[name].cpu().numpy() for name in ARRAYS}
        jump_model = None
        if 'gate_nodes' in saved:  # before, a jump was an edge that cost its expected attempts
            jump_model = JumpModel(**{name: saved[name].cpu().numpy() for name in JumpModel._fields})
        return cls(**arrays, radius=saved['radius'], hop=saved['hop'], jump_model=jump_model)

    @property
    def nbytes(self):
        """Bytes of its arrays, which is what it adds to a checkpoint."""
        return sum(getattr(self, name).nbytes for name in ARRAYS) + sum(array.nbytes for array in self.jump_model)

    def __str__(self):
        return (f'{len(self):,} nodes, {len(self.costs):,} edges of {self.hop} steps, '
                f'{self.nbytes / 2**20:.1f} MiB')


ARRAYS = ('mean', 'scale', 'centers', 'states', 'sources', 'targets', 'costs', 'near_sources',
          'near_targets')  # of a StateMap


def typical_displacement(place, end_of, hop):
    """Median distance between two states of a trajectory `hop` steps apart, of those that do not stand (at a goal, or
    fallen); 0 without such pairs. `place(rows)` gives where some rows lie."""
    rows = np.flatnonzero(np.arange(len(end_of)) + hop <= end_of)
    rows = rows[::max(1, len(rows) // 50_000)]
    if not len(rows):
        return 0.0

    distances = np.linalg.norm(place(rows + hop) - place(rows), axis=1)
    return float(np.median(distances[distances >= STATIONARY_FRACTION * np.quantile(distances, 0.9)]))


def typical_gap(centers):
    """Median distance from a center to its nearest neighbour; 0 for a single one."""
    if len(centers) < 2:
        return 0.0
    return float(np.median(KDTree(centers).query(centers, k=2)[0][:, 1]))


def cluster(places, nodes, spacing, rng, most=MAX_NODES):
    """k-means -> centers (K, S), K at most `nodes`; with `nodes` 0, K such that the mean distance of a state to its
    center is about `spacing`, at least MIN_NODES and at most `most`, never more than there are different states."""
    different = len(np.unique(places, axis=0))
    most = min(most, different)
    count = min(nodes or 2 * MIN_NODES, most)
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # an empty cluster keeps its center; `_drop_empty` removes it
            centers, labels = kmeans2(places, count, iter=8, minit='points', seed=rng)
        if nodes or not spacing:
            break
        mean_distance = np.linalg.norm(places - centers[labels], axis=1).mean()
        if mean_distance <= 1.1 * spacing and (mean_distance >= 0.9 * spacing or count <= MIN_NODES):
            break
        wanted = int(max(count * (mean_distance / spacing) ** 2, MIN_NODES))  # places form areas
        wanted = min(wanted, most)
        if wanted == count:
            break
        count = wanted
    return np.ascontiguousarray(centers[np.unique(labels)], np.float32)


def find_jumps(observations, strides, end_of, seen=slice(None)):
    """observations (N, S) raw; strides (N,): the length of the step from each row to the next; end_of (N,): the last
    row of its trajectory; seen (S,) bool: the numbers that say where one is -> (N,) bool: is that step a jump? It is
    longer than 99 % of all, and changes some number far more than these do: by its length alone a tumble is as much as
    a short jump."""
    inside = np.arange(len(end_of)) < end_of
    rows = np.flatnonzero(inside)
    if not len(rows):
        return inside

    def changes(rows):
        return np.abs(observations[rows + 1] - observations[rows])[:, seen]

    usual = np.quantile(changes(rows[::max(1, len(rows) // SAMPLED_STEPS)]), 0.99, axis=0)
    usual = np.where(usual > 0, usual, np.inf)  # what hardly ever changes says nothing

    long = np.flatnonzero(inside & (strides > np.quantile(strides[inside], 0.99)))
    jumps = np.zeros(len(inside), bool)
    jumps[long[(changes(long) > JUMP * usual).any(1)]] = True
    return jumps


def find_gates(places, lengths):
    """places (J, d) from which the data jump; lengths (J,) of these jumps -> (J,) int: the number of the gate that each
    went through. Places nearer to each other than the shortest jump is long, or joined by such, are of one gate; they
    are told to a quarter of that, for jumps may be many."""
    if not len(places):
        return np.zeros(0, int)
    cells, cell_of = np.unique(np.round(4 * places / lengths.min()), axis=0, return_inverse=True)
    pairs = KDTree(cells).query_pairs(4, output_type='ndarray')
    joined = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(cells), len(cells)))
    return connected_components(joined, directed=False)[1][cell_of.ravel()]


def walks(jumps, end_of, steps):
    """-> int rows (n,) from which the trajectory goes on for so many steps, without a jump."""
    rows = np.arange(len(end_of), dtype=np.int32)
    rows = rows[rows + steps <= end_of]
    jumps_before = np.concatenate([[0], np.cumsum(jumps, dtype=np.int32)])
    return rows[jumps_before[rows] == jumps_before[rows + steps]]


def find_edges(jumps, labels, end_of, hop):
    """jumps (N,), see `find_jumps`; labels (N,): the node of each row; end_of (N,): the last row of its trajectory
    -> sources, targets (E,) int32 and costs (E,) float32, in steps, of the edges walked.

    A crossing is a stretch of a trajectory whose states t and t + hop lie in u and v; it counts once however long
    the trajectory dwells there. Who jumps (a teleporter) does not walk.
    """
    rows = walks(jumps, end_of, hop)
    sources, targets, crossings = _count_crossings(rows, labels[rows], labels[rows + hop])
    costs = hop * np.where(crossings >= MIN_CROSSINGS, 1.0, RARE_EDGE_PENALTY)
    return sources.astype(np.int32), targets.astype(np.int32), costs.astype(np.float32)


def estimate_jumps(jumps, gates, labels, end_of, hop):
    """As `find_edges`; gates (J,): the gate of each jump in order -> JumpModel: within a hop before a jump one can go
    through its gate. From one node too few jumps were seen to tell what chance decides, so all of a gate's count."""
    jumps_before = np.concatenate([[0], np.cumsum(jumps, dtype=np.int32)])
    take_off = np.flatnonzero(jumps)
    before = take_off[:, None] - np.arange(hop)  # the states from which it was reached within a hop
    same = (before >= 0) & (end_of[np.maximum(before, 0)] == end_of[take_off][:, None])
    same &= jumps_before[np.maximum(before, 0)] == jumps_before[take_off][:, None]
    number = np.broadcast_to(gates[:, None], before.shape)[same]
    ones = np.ones(len(number), np.int64)
    gate_nodes, gate_numbers, _ = _sum_by_pair(labels[before[same]], number, ones)

    numbers, nodes, landings = _sum_by_pair(gates, labels[take_off + 1], ones[:len(gates)])
    chances = landings / np.maximum(np.bincount(numbers, landings), 1)[numbers]
    return JumpModel(
        gate_nodes=gate_nodes.astype(np.int32),
        gate_numbers=gate_numbers.astype(np.int32),
        landing_numbers=numbers.astype(np.int32),
        landing_nodes=nodes.astype(np.int32),
        landing_probs=chances.astype(np.float32),
    )


def find_near(jumps, labels, end_of, hop):
    """As `find_edges` -> sources, targets (M,) int32: pairs of nodes of which the second followed on the first after a
    quarter of a hop, a half, three quarters or a whole one, at least `MIN_CROSSINGS` times altogether."""
    pairs = []
    for steps in sorted({max(1, hop * quarters // 4) for quarters in (1, 2, 3, 4)}):
        rows = walks(jumps, end_of, steps)
        pairs.append(_count_crossings(rows, labels[rows], labels[rows + steps]))

    sources, targets, crossings = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    sources, targets, crossings = _sum_by_pair(sources, targets, crossings)
    proven = crossings >= MIN_CROSSINGS
    return sources[proven].astype(np.int32), targets[proven].astype(np.int32)


def _count_crossings(rows, sources, targets):
    """-> sources, targets, crossings (E,) of the different pairs of nodes, without those from a node to itself."""
    order = np.argsort(rows, kind='stable')
    rows = rows[order]
    sources = sources[order]
    targets = targets[order]

    begins = np.ones(len(rows), bool)
    begins[1:] = (np.diff(rows) != 1) | (np.diff(sources) != 0) | (np.diff(targets) != 0)
    begins &= sources != targets

    return _sum_by_pair(sources[begins], targets[begins], np.ones(begins.sum(), np.int64))


def _sum_by_pair(sources, targets, counts):
    """-> sources, targets, counts (E,) of the different pairs of nodes, the counts of each added up."""
    number = int(targets.max(initial=0)) + 1
    pairs, position = np.unique(sources.astype(np.int64) * number + targets, return_inverse=True)
    totals = np.bincount(position, counts, len(pairs)).astype(np.int64)
    return pairs // number, pairs % number, totals
