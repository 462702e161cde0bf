"""Plan on a graph of the data, by shortest paths between clusters of states.

V estimates temporal distance, but it is a smooth function and underestimates distances across thin walls. A
graph of transitions that the data contain cannot lead through a wall. SoRB (Eysenbach et al. 2019) and SGM
(Laskin et al. 2020) plan on graphs as well, with actions and learned distances. This planner needs neither.

    nodes       k-means clusters of goal features, (s - mean) @ scale, which weight slow directions: a node is
                a position rather than a posture
    edges       u -> v: some trajectory moved from u to v in `hop` steps
    near pairs  u -> v: trajectories moved from u to v within a hop, so a goal in v is a valid subgoal in u
    costs       environment steps along an edge, multiplied by a penalty if the edge was rarely observed
    jumps       discontinuities of the data (a teleporter) whose landing is random, estimated as a `JumpModel`
    distances   Dijkstra's algorithm from the goal over reversed edges, or value iteration if the data contain
                jumps
    waypoint    state of the next node, or the goal. A path that returns to the previous node is ignored for
                one hop (hysteresis).

`StateGraph` is the data, which a checkpoint keeps. `GraphPlanner` plans on it.
"""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree

from planning.planners import Subgoals
from support.contents import Number, Tensor, check_layout
from support.progress import progress_bar

# entries of a route in place of the next node
NO_PATH = -1
AT_GOAL = -2

# nodes
HOP_FRACTION = 0.6  # default hop in `transition_steps`: 15 of 25 steps, measured in results/README
NODE_SPACING = 0.2  # mean distance from a state to its node, in median displacements over a hop
SPACING_TOL = 0.1  # accepted relative error of that mean distance
MIN_NODES = 250
MAX_NODES = 4000
KMEANS_STATES = 40_000  # states drawn from the data for k-means
KMEANS_ITERATIONS = 8
KMEANS_ROUNDS = 4  # runs of k-means, each with a better number of nodes
RNG_STREAM = 7  # separates the random draws of the graph from others with the same seed
CHUNK_ROWS = 1 << 18  # rows of the data whose features are in memory at once
RADIUS_QUANTILE = 0.999  # quantile of the distance from a state to its node that defines the radius of nodes
OFF_MAP_RADII = 2.0  # distance from all nodes, in radii, beyond which a state is off the map
MIN_ACTIVE_SPREAD = 2.5e-4  # spread of nodes, in the largest one, below which look-ups ignore a dimension
DISPLACEMENT_PAIRS = 50_000  # pairs of states, at most, for the median displacement
STATIONARY_FRACTION = 0.2  # displacement, in 90th percentiles, below which a state is stationary

# edges
MIN_CROSSINGS = 2  # crossings from which an edge is reliable
TURN_RADII = 2.0  # distance in radii, within which a robot that stops can leave a node like its neighbour
CLOSE_HOPS = 4  # length of a path, in hops, up to which a goal within reach is a subgoal
RARE_EDGE_PENALTY = 3.0  # factor on the cost of an edge with fewer crossings

# jumps
LONG_STEP_QUANTILE = 0.99  # quantile of step lengths and changes that ordinary steps do not exceed
JUMP_RATIO = 7.0  # change of some dimension in a jump, in ordinary changes of it
SAMPLED_STEPS = 100_000  # steps, at most, for the quantiles of changes
CELLS_PER_JUMP = 4  # cells along the length of the shortest jump, within which take-offs share a jump source
PLANNING_DISCOUNT = 0.9999  # per step, of value iteration; near 1, reliability counts for more than speed
VALUE_TOL = 1e-7  # largest relative change of a value at which value iteration stops

CACHED_ROUTES = 128  # routes that a planner keeps, one per goal node


# ------------------------------------------------------------------------------------------------ the graph
class JumpModel(NamedTuple):
    """Transition model of the jumps in the data.

    A jump source is a region from which the data jump, such as the entrance of a teleporter. J pairs state
    which nodes lie within a hop of which jump source. P pairs state the landings of each jump source with
    their probabilities, which add up to 1 for each jump source.
    """

    source_nodes: np.ndarray  # (J,) int32, node within a hop of the jump source
    source_ids: np.ndarray  # (J,) int32, that jump source
    landing_source_ids: np.ndarray  # (P,) int32, jump source of the landing
    landing_nodes: np.ndarray  # (P,) int32, node of the landing
    landing_probs: np.ndarray  # (P,) float32

    @classmethod
    def empty(cls):
        """Return the JumpModel of data without jumps."""
        integers = np.zeros(0, np.int32)
        return cls(integers, integers, integers, integers, np.zeros(0, np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class StateGraph:
    """A graph of the states of the data: K nodes, E edges, M near pairs and a JumpModel."""

    mean: np.ndarray  # (S,) float32
    scale: np.ndarray  # (S, S) float32; the features of a state s are (s - mean) @ scale
    centers: np.ndarray  # (K, S) float32, features of the nodes
    states: np.ndarray  # (K, S) float32, raw state of the data nearest to each node
    radius: float  # distance within which RADIUS_QUANTILE of the data lie from their node
    sources: np.ndarray  # (E,) int32, node at which an edge begins
    targets: np.ndarray  # (E,) int32, node at which it ends
    costs: np.ndarray  # (E,) float32, in environment steps
    near_sources: np.ndarray  # (M,) int32, node from which a goal in the near target is a valid subgoal
    near_targets: np.ndarray  # (M,) int32
    hop: int  # steps along an edge
    jumps: JumpModel = dataclasses.field(default_factory=JumpModel.empty)

    @classmethod
    def from_data(cls, data, mean, scale, hop=0, nodes=0, seed=0):
        """Build the graph of a `TrajectoryDataset`.

        Args:
            mean, scale: (S,) and (S, S) of the affine map from a state to its features; scale (S,) is a diagonal.
            hop: steps along an edge; 0: HOP_FRACTION of the `transition_steps` of the data.
            nodes: number of nodes; 0: enough to cover the data at NODE_SPACING.
            seed: seed of the sample of states and of k-means.
        """
        rng = np.random.default_rng([seed, RNG_STREAM])
        hop = hop or max(1, round(HOP_FRACTION * data.transition_steps))
        mean, scale = (np.asarray(array, np.float32) for array in (mean, scale))
        scale = np.diag(scale) if scale.ndim == 1 else scale

        def features(rows):
            return to_features(data.observations[rows], mean, scale)

        # nodes, and the node of each row of the data
        centers = choose_centers(features, data.end_of, hop, nodes, rng)
        labels, distances, step_lengths = assign_nodes(features, len(data), centers)
        while len(used := np.unique(labels)) < len(centers):  # drop nodes without states
            centers = centers[used]
            labels, distances, step_lengths = assign_nodes(features, len(data), centers)
        representatives = nearest_rows(labels, distances, len(centers))

        # the gap between nodes bounds the radius below: distances are 0 if each state is a node
        radius = max(np.quantile(distances, RADIUS_QUANTILE), median_gap(centers))

        # jumps of the data, and the regions in which they begin
        active = active_dims(centers)
        jumps = find_jumps(features, step_lengths, data.end_of, active)
        source_ids = find_jump_sources(features(np.flatnonzero(jumps))[:, active], step_lengths[jumps])

        # transitions between nodes
        paths = NodePaths(labels, data.end_of, jumps)
        sources, targets, costs = find_edges(paths, hop)
        near_sources, near_targets = find_near_pairs(paths, hop)

        return cls(
            mean=mean,
            scale=scale,
            centers=centers,
            states=data.observations[representatives].copy(),
            radius=float(radius),
            sources=sources,
            targets=targets,
            costs=costs,
            near_sources=near_sources,
            near_targets=near_targets,
            hop=int(hop),
            jumps=estimate_jumps(paths, source_ids, hop),
        )

    def __len__(self):
        return len(self.centers)

    def __str__(self):
        sources = len(np.unique(self.jumps.landing_source_ids))
        jumps = f'{sources} jump source(s) such as teleporters, ' if sources else ''
        return (f'{len(self):,} nodes, {len(self.costs):,} edges of {self.hop} steps, {jumps}'
                f'{self.nbytes / 2**20:.1f} MiB')

    @property
    def known_states(self):
        """Return raw states (K, S) of the data, one per node."""
        return self.states

    @property
    def nbytes(self):
        """Return the bytes of all arrays, which the graph adds to a checkpoint."""
        values = [*vars(self).values(), *self.jumps]
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    def displacement(self, steps):
        """Return the median displacement of moving trajectories in some steps, in features."""
        if not len(self.sources):
            return self.radius
        lengths = np.linalg.norm(self.centers[self.targets] - self.centers[self.sources], axis=1)
        return float(np.median(lengths)) * steps / self.hop

    # ------------------------------------------------------------------------------------------ checkpoints
    def state_dict(self):
        """Return the fields as tensors and numbers; `from_state_dict` rebuilds the graph exactly."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _to_tensors(fields) | {'jumps': _to_tensors(self.jumps._asdict())}

    @classmethod
    def from_state_dict(cls, saved):
        """Return the graph whose `state_dict` was `saved`; raise ValueError if it is none."""
        sizes = check_layout(saved, GRAPH_LAYOUT)
        check_layout(saved['jumps'], JUMPS_LAYOUT, **sizes)
        return cls(**_to_arrays(saved) | {'jumps': JumpModel(**_to_arrays(saved['jumps']))})


GRAPH_LAYOUT = {  # of `StateGraph.state_dict`, beside its jumps
    'mean': Tensor('float32', 'S'),
    'scale': Tensor('float32', 'S S'),
    'centers': Tensor('float32', 'K S'),
    'states': Tensor('float32', 'K S'),
    'radius': Number(float, least=0),
    'sources': Tensor('int32', 'E', least=0, below='K'),
    'targets': Tensor('int32', 'E', least=0, below='K'),
    'costs': Tensor('float32', 'E', least=0),
    'near_sources': Tensor('int32', 'M', least=0, below='K'),
    'near_targets': Tensor('int32', 'M', least=0, below='K'),
    'hop': Number(int, least=1),
}
JUMPS_LAYOUT = {
    'source_nodes': Tensor('int32', 'J', least=0, below='K'),
    'source_ids': Tensor('int32', 'J', least=0, below='P'),
    'landing_source_ids': Tensor('int32', 'P', least=0, below='P'),
    'landing_nodes': Tensor('int32', 'P', least=0, below='K'),
    'landing_probs': Tensor('float32', 'P', least=0),
}


def _to_tensors(values):
    """Return the dict with tensors in place of arrays."""
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()}


def _to_arrays(values):
    """Return the dict with arrays in place of tensors."""
    return {name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in values.items()}


# ------------------------------------------------------------------------------------------- look-up of nodes
def to_features(states, mean, scale):
    """Return the features (..., S) of raw states (..., S)."""
    return (states - mean) @ scale


def active_dims(centers):
    """Return the mask (S,) bool of the dimensions in which nodes at centers (K, S) differ noticeably.

    The others hardly affect which node is nearest. Features have no unit, unlike their scale.
    """
    spread = centers.std(0)
    return spread >= MIN_ACTIVE_SPREAD * spread.max()


# ------------------------------------------------------------------------------------------------ planning
class GraphPlanState(NamedTuple):
    """Plans of B episodes on a graph of K nodes."""

    goals: np.ndarray  # (B, S) float32, raw; NaN before the first step
    goal_features: np.ndarray  # (B, S) of these goals
    routes: np.ndarray  # (B, K + 1) int32, `GraphPlanner.route` to each goal
    targets: np.ndarray  # (B,) int, node that each episode heads for, AT_GOAL or NO_PATH
    committed: np.ndarray  # (B,) int, steps for which the episode has kept its target against the route


class GraphPlanner:
    """Planner of waypoints along shortest paths on a StateGraph (the interface is planners.Planner).

    Args:
        graph: StateGraph.
        goal_features: function from raw states (..., S), torch tensors, to their goal features (..., S).
        reach: distance from the goal, in features, within which a short path is replaced by the goal itself;
            0: the robot passes goals and waypoints at full speed.

    Attributes:
        node_features: (K, S) goal features of the nodes. active: (S,) bool, dimensions of the look-up.
    """

    def __init__(self, graph, goal_features, reach=0.0):
        self.graph = graph
        self.reach = reach
        self.goal_features = goal_features
        self.node_features = goal_features(torch.from_numpy(graph.states)).cpu().numpy()

        # look-up of the node of a state
        self.active = active_dims(graph.centers)
        self._tree = KDTree(graph.centers[:, self.active])
        if reach:
            radius = TURN_RADII * graph.radius
            self._around = self._tree.query_ball_point(graph.centers[:, self.active], radius)

        # sparse matrices by target: incoming edges, and nodes from which a target is near. Each pair is
        # unique, as coo_array would add up the costs of duplicates.
        shape = len(graph), len(graph)
        is_near = np.ones(len(graph.near_sources), bool)
        self._incoming = coo_array((graph.costs, (graph.targets, graph.sources)), shape=shape).tocsr()
        self._near = coo_array((is_near, (graph.near_targets, graph.near_sources)), shape=shape).tocsr()

        self._cached_route = functools.lru_cache(CACHED_ROUTES)(self._find_route)

    # ---------------------------------------------------------------------------------- interface of planners
    def initial_state(self, batch_size):
        """Return the GraphPlanState of `batch_size` episodes before their first step."""
        unknown = np.full((batch_size, self.graph.states.shape[1]), np.nan, np.float32)
        return GraphPlanState(
            goals=unknown,
            goal_features=unknown,
            routes=np.full((batch_size, len(self.graph) + 1), NO_PATH, np.int32),
            targets=np.full(batch_size, NO_PATH),
            committed=np.zeros(batch_size, int),
        )

    def reset(self, state, rows):
        """Return the GraphPlanState in which the episodes of `rows` (B,) bool have no target."""
        return state._replace(
            targets=np.where(rows, NO_PATH, state.targets),
            committed=np.where(rows, 0, state.committed),
        )

    def step(self, states, goals, state):
        """Return Subgoals at the next waypoints, and the new GraphPlanState.

        An edge spans a hop, and an episode that follows it crosses other nodes. In sparse graphs the path
        from such a node may lead back to the start of the edge, and the episode would oscillate. The episode
        therefore keeps its target if the route leads to a node from which it would head for the same target.
        It does so for a hop at most, since a wall may block the target.

        Args:
            states, goals: (B, S) raw torch tensors.
            state: GraphPlanState of the previous step.
        """
        # routes to new goals, whose episodes have no target yet
        is_new = (goals.cpu().numpy() != state.goals).any(1)
        if is_new.any():
            state = self._set_goals(self.reset(state, is_new), goals)

        # next node on the route from the node of each state
        rows = np.arange(len(states))
        proposed = state.routes[rows, self.locate(states.cpu().numpy())]

        # keep the previous target if the route leads back to where it was chosen
        leads_back = (proposed >= 0) & (state.routes[rows, proposed] == state.targets)
        keeps = leads_back & (state.committed < self.graph.hop)
        targets = np.where(keeps, state.targets, proposed)
        committed = np.where(keeps, state.committed + 1, 0)

        # the goal itself, or the state of the target node; an arbitrary one in rows without a path
        at_goal = (targets == AT_GOAL)[:, None]
        features = np.where(at_goal, state.goal_features, self.node_features[np.maximum(targets, 0)])

        subgoals = Subgoals(
            features=torch.as_tensor(features, device=states.device),
            found=targets != NO_PATH,
            retreat=torch.full_like(states, torch.nan),
        )
        return subgoals, state._replace(targets=targets, committed=committed)

    def _set_goals(self, state, goals):
        """Return the GraphPlanState with routes to raw goals (B, S), a torch tensor."""
        array = goals.cpu().numpy()
        features = self.goal_features(goals).cpu().numpy()
        return state._replace(goals=array.copy(), goal_features=features, routes=self.routes(array))

    # ---------------------------------------------------------------------------------------- nodes and paths
    def locate(self, states):
        """Return the nearest nodes (B,) of raw states (B, S), arrays; -1 for states far from all nodes."""
        features = to_features(np.asarray(states, np.float32), self.graph.mean, self.graph.scale)
        distances, nodes = self._tree.query(features[:, self.active])
        return np.where(distances <= OFF_MAP_RADII * self.graph.radius, nodes, -1)

    def distances(self, node):
        """Return the steps (K,) from every node to `node`, inf without a path."""
        return self._paths_to(node)[0]

    def route(self, node):
        """Return the route to a goal in `node` (-1: off the map).

        Returns:
            (K + 1,) int32: the next node on the path from each node, AT_GOAL within a hop of the goal,
            NO_PATH without one. The last entry, which index -1 selects, is for states off the map.
        """
        return self._cached_route(int(node))

    def all_routes(self):
        """Return the routes (K, K + 1) int32 to goals in all nodes."""
        routes = np.empty((len(self.graph), len(self.graph) + 1), np.int32)
        for node in progress_bar(range(len(self.graph)), 'routes', leave=False, delay=1):
            routes[node] = self.route(node)
        return routes

    def routes(self, goals):
        """Return the routes (B, K + 1) to raw goals (B, S), arrays."""
        return np.stack([self.route(node) for node in self.locate(goals)])

    def path(self, start, goal):
        """Return the list of nodes from `start` to `goal`; empty without a path or if either is -1.

        The path follows the nodes that an episode heads for. These can lead back to a jump source from its
        likeliest landing, for another attempt. There the path takes the landing nearest to the goal, which is
        the last attempt. Distances fall along the path, so that it ends.
        """
        if min(start, goal) < 0:
            return []

        distances, next_nodes = self._paths_to(goal)
        nodes = [int(start)]
        while nodes[-1] != goal:
            here = nodes[-1]
            following = next_nodes[here]
            if following < 0:
                return []
            if distances[following] >= distances[here]:
                landings = self._landings(here)
                following = landings[distances[landings].argmin()]
            nodes.append(int(following))
        return nodes

    def _landings(self, node):
        """Return the possible landings (n,) of the jump sources within a hop of `node`."""
        jumps = self.graph.jumps
        entered = jumps.source_ids[jumps.source_nodes == node]
        possible = np.isin(jumps.landing_source_ids, entered) & (jumps.landing_probs > 0)
        return jumps.landing_nodes[possible]

    def _find_route(self, node):
        """Compute `route` without the cache."""
        route = np.full(len(self.graph) + 1, NO_PATH, np.int32)
        if node >= 0:
            distances, next_nodes = self._paths_to(node)
            connected = np.isfinite(distances)
            route[:-1][connected] = next_nodes[connected]
            route[:-1][distances <= self.graph.hop] = AT_GOAL

            if self.reach and not len(self.graph.jumps.source_nodes):  # with jumps, distances are expectations
                self._let_leave_in_any_direction(route, node, distances)
        return route

    def _let_leave_in_any_direction(self, route, node, distances):
        """Change the route (K + 1,) to a node for a robot that is slow enough to turn, in place.

        Edges lead on from a node in the directions in which the robots of the data passed it at full speed. A
        robot that stops can also leave it in those of the nodes around it.

        Args:
            distances: (K,) steps to `node`.
        """
        # to the next node of the nearest node to the goal around each node
        nearest = np.array([around[distances[around].argmin()] for around in self._around])
        leaves = (route[:-1] != AT_GOAL) & (distances[nearest] < distances)
        route[:-1][leaves] = route[:-1][nearest][leaves]

        # or straight to the goal, to which data that pass it lead away and back
        ways = np.linalg.norm(self.graph.centers - self.graph.centers[node], axis=1)
        route[:-1][(ways <= self.reach) & (distances <= CLOSE_HOPS * self.graph.hop)] = AT_GOAL

    def _paths_to(self, node):
        """Find the shortest paths from all nodes to `node`.

        Every path ends with a near pair. Edges span a whole hop, so paths of edges alone would have to move
        away from a goal that is nearer than a hop.

        Returns:
            distances: (K,) float, in steps, inf without a path.
            next_nodes: (K,) int, next node on the path, negative without a path and at `node`.
        """
        near = self._near.indices[self._near.indptr[node]:self._near.indptr[node + 1]]
        if len(self.graph.jumps.source_nodes):
            return self._paths_with_jumps(node, near)

        # Dijkstra's algorithm from the goal and its near nodes
        distances, next_nodes, _ = dijkstra(self._incoming, indices=[node, *near], min_only=True,
                                            return_predecessors=True)

        # the last hop, from a near node to the goal
        distances += self.graph.hop
        distances[node] = 0
        next_nodes[near] = node
        return distances, next_nodes

    def _paths_with_jumps(self, node, near):
        """Find the paths as `_paths_to` does, in expectation, by value iteration (Bellman 1957).

        The value of a node is the discounted probability of reaching the goal from it, by the best of its
        edges or by a jump, whose value is the mean over its landings. The next node of a jump is a landing:
        an episode that heads for it enters the jump source.
        """
        graph, jumps = self.graph, self.graph.jumps
        hop_discount = PLANNING_DISCOUNT ** graph.hop
        edge_discounts = PLANNING_DISCOUNT ** graph.costs.astype(np.float64)
        value = np.zeros(len(graph))
        value[near] = hop_discount
        value[node] = hop_discount

        changed = True
        while changed:
            # value of the best edge of each node
            edge_values = np.zeros(len(graph))
            np.maximum.at(edge_values, graph.sources, edge_discounts * value[graph.targets])

            # expected value of the landings of each jump source, and of entering it from each of its nodes
            landing_values = jumps.landing_probs * value[jumps.landing_nodes]
            source_values = np.bincount(jumps.landing_source_ids, landing_values)
            entry_values = hop_discount * source_values[jumps.source_ids]
            jump_values = np.zeros(len(graph))
            np.maximum.at(jump_values, jumps.source_nodes, entry_values)

            # Bellman update
            new_value = np.maximum(value, np.maximum(edge_values, jump_values))
            changed = (new_value > (1 + VALUE_TOL) * value).any()
            value = new_value

        # the target of the best edge of each node: the last one in ascending order overwrites the others
        next_nodes = np.full(len(graph), NO_PATH)
        order = np.argsort(edge_discounts * value[graph.targets], kind='stable')
        next_nodes[graph.sources[order]] = graph.targets[order]

        # or the landing that contributes most, where a jump is better than the best edge
        order = np.argsort(landing_values, kind='stable')
        best_landing = np.zeros(len(source_values), int)
        best_landing[jumps.landing_source_ids[order]] = jumps.landing_nodes[order]

        # a node near several jump sources enters the best one, which comes last in ascending order
        order = np.argsort(entry_values, kind='stable')
        order = order[(entry_values > edge_values[jumps.source_nodes])[order]]
        next_nodes[jumps.source_nodes[order]] = best_landing[jumps.source_ids[order]]

        # the ends of paths
        next_nodes[near] = node
        next_nodes[value == 0] = NO_PATH
        next_nodes[node] = NO_PATH

        # steps of a certain path of the same value, exact within a hop of the goal
        with np.errstate(divide='ignore'):
            distances = np.log(value) / np.log(PLANNING_DISCOUNT)
        distances[near] = graph.hop
        distances[node] = 0
        return distances, next_nodes


# ------------------------------------------------------------------------------------------ nodes of the data
def choose_centers(features, end_of, hop, nodes, rng):
    """Return the centers (K, S) of k-means on a sample of the data.

    Args:
        features: function from rows of the data to their features (n, S).
        end_of: (N,) last row of the trajectory of each row.
        hop: steps along an edge.
        nodes: number of nodes; 0: enough to cover the data.
        rng: numpy Generator.
    """
    count = len(end_of)
    rows = np.arange(count)
    if count > KMEANS_STATES:
        rows = rng.choice(count, KMEANS_STATES, replace=False)

    # with fewer states per node than steps in a hop, most pairs of nodes would be crossed only once
    max_nodes = nodes or min(MAX_NODES, max(2, count // hop))
    spacing = NODE_SPACING * median_displacement(features, end_of, hop)
    return cluster(features(rows), nodes, spacing, rng, max_nodes)


def median_displacement(features, end_of, hop):
    """Return the median feature distance between states of a trajectory `hop` steps apart.

    Pairs in which the robot is stationary (at a goal, or fallen) do not count. The median of no pairs is 0.
    """
    rows = np.flatnonzero(np.arange(len(end_of)) + hop <= end_of)
    rows = rows[::max(1, len(rows) // DISPLACEMENT_PAIRS)]
    if not len(rows):
        return 0.0

    distances = np.linalg.norm(features(rows + hop) - features(rows), axis=1)
    moving = distances >= STATIONARY_FRACTION * np.quantile(distances, 0.9)
    return float(np.median(distances[moving]))


def median_gap(centers):
    """Return the median distance from a center to its nearest neighbour; 0 for a single center."""
    if len(centers) < 2:
        return 0.0
    return float(np.median(KDTree(centers).query(centers, k=2)[0][:, 1]))


def cluster(features, nodes, spacing, rng, max_nodes=MAX_NODES):
    """Return the centers of k-means with a number of clusters that fits the spacing.

    Args:
        features: (n, S).
        nodes: number of clusters; 0: as many as give the mean distance `spacing`, at least MIN_NODES.
        spacing: mean distance from a state to its center.
        rng: numpy Generator.
        max_nodes: largest number of clusters, which never exceeds the number of different states.

    Returns:
        (K, S) float32; K may be below the number asked for, since empty clusters are dropped.
    """
    max_nodes = min(max_nodes, len(np.unique(features, axis=0)))
    count = min(nodes or 2 * MIN_NODES, max_nodes)
    for _ in range(KMEANS_ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # an empty cluster, which is dropped below
            centers, labels = kmeans2(features, count, iter=KMEANS_ITERATIONS, minit='points', seed=rng)
        if nodes or not spacing:
            break

        # accept the mean distance, also a smaller one if there are no more nodes than the minimum
        mean_distance = np.linalg.norm(features - centers[labels], axis=1).mean()
        is_dense = mean_distance <= (1 + SPACING_TOL) * spacing
        is_sparse = mean_distance >= (1 - SPACING_TOL) * spacing or count <= MIN_NODES
        if is_dense and is_sparse:
            break

        # positions lie in a plane, so the number of nodes scales with the inverse square of their distance
        wanted = int(max(count * (mean_distance / spacing) ** 2, MIN_NODES))
        wanted = min(wanted, max_nodes)
        if wanted == count:
            break
        count = wanted
    return np.ascontiguousarray(centers[np.unique(labels)], np.float32)


def assign_nodes(features, count, centers):
    """Assign each row of the data to its nearest node.

    Rows are processed in chunks, since the features of all rows would take as much memory as the data.

    Args:
        features: function from rows of the data to their features (n, S).
        count: number of rows N.
        centers: (K, S) features of the nodes.

    Returns:
        labels: (N,) int32, nearest node of each row.
        distances: (N,) float32, distance to it.
        step_lengths: (N,) float32, feature distance from each row to the next, 0 at the last row.
    """
    active = active_dims(centers)
    tree = KDTree(centers[:, active])
    labels = np.empty(count, np.int32)
    distances = np.empty(count, np.float32)
    step_lengths = np.zeros(count, np.float32)

    for begin in range(0, count, CHUNK_ROWS):
        # one row more than the chunk, for the step that leaves it
        chunk = features(slice(begin, min(begin + CHUNK_ROWS + 1, count)))
        rows = slice(begin, begin + CHUNK_ROWS)
        distances[rows], labels[rows] = tree.query(chunk[:CHUNK_ROWS, active])
        step_lengths[begin:begin + len(chunk) - 1] = np.linalg.norm(np.diff(chunk, axis=0), axis=1)
    return labels, distances, step_lengths


def nearest_rows(labels, distances, nodes):
    """Return the row (K,) nearest to each of the `nodes` nodes, given the arrays of `assign_nodes`."""
    order = np.lexsort((distances, labels))  # by node, then by distance
    return order[np.searchsorted(labels[order], np.arange(nodes))]


# --------------------------------------------------------------------------------------- transitions of nodes
class NodePaths(NamedTuple):
    """The trajectories of the data as sequences of nodes, N rows."""

    labels: np.ndarray  # (N,) int, node of each row
    end_of: np.ndarray  # (N,) int, last row of the trajectory of each row
    jumps: np.ndarray  # (N,) bool, whether the step to the next row is a jump

    def jumps_before(self):
        """Return the number of jumps before each row (N + 1,) int32."""
        return np.concatenate([[0], np.cumsum(self.jumps, dtype=np.int32)])

    def rows_before(self, steps):
        """Return the rows (n,) int32 from which a trajectory continues for `steps` steps without a jump."""
        rows = np.arange(len(self.end_of), dtype=np.int32)
        rows = rows[rows + steps <= self.end_of]
        jumps_before = self.jumps_before()
        return rows[jumps_before[rows] == jumps_before[rows + steps]]

    def crossings(self, steps):
        """Return the pairs of nodes `steps` steps apart as sources, targets and their crossings (E,).

        A crossing counts once however long the trajectory dwells in the two nodes.
        """
        rows = self.rows_before(steps)
        sources = self.labels[rows]
        targets = self.labels[rows + steps]

        # first row of each run of rows with the same pair, without pairs of a node with itself
        begins = np.ones(len(rows), bool)
        begins[1:] = (np.diff(rows) != 1) | (np.diff(sources) != 0) | (np.diff(targets) != 0)
        begins &= sources != targets

        return sum_by_pair(sources[begins], targets[begins], np.ones(begins.sum(), np.int64))


def find_edges(paths, hop):
    """Return sources, targets (E,) int32 and costs (E,) float32, in steps, of the edges of NodePaths."""
    sources, targets, crossings = paths.crossings(hop)
    costs = hop * np.where(crossings >= MIN_CROSSINGS, 1.0, RARE_EDGE_PENALTY)
    return sources.astype(np.int32), targets.astype(np.int32), costs.astype(np.float32)


def find_near_pairs(paths, hop):
    """Return the pairs of nodes within a hop of each other as sources, targets (M,) int32.

    The sum of crossings after a quarter, a half, three quarters and a whole hop must reach MIN_CROSSINGS.
    """
    quarters = sorted({max(1, hop * quarter // 4) for quarter in (1, 2, 3, 4)})
    counted = [paths.crossings(steps) for steps in quarters]

    sources, targets, crossings = (np.concatenate(arrays) for arrays in zip(*counted, strict=True))
    sources, targets, crossings = sum_by_pair(sources, targets, crossings)
    reliable = crossings >= MIN_CROSSINGS
    return sources[reliable].astype(np.int32), targets[reliable].astype(np.int32)


def sum_by_pair(firsts, seconds, counts):
    """Return the distinct pairs of integers as firsts, seconds (E,), with the sums of their counts (E,)."""
    base = int(seconds.max(initial=0)) + 1
    pairs, position = np.unique(firsts.astype(np.int64) * base + seconds, return_inverse=True)
    totals = np.bincount(position, counts, len(pairs)).astype(np.int64)
    return pairs // base, pairs % base, totals


# ------------------------------------------------------------------------------------------------ jumps
def find_jumps(features, step_lengths, end_of, active=slice(None)):
    """Find the steps that are jumps: discontinuities such as those of a teleporter.

    A jump is longer than 99 % of all steps, and it changes some feature JUMP_RATIO times more than 99 % of
    all steps do. The length alone does not separate a short jump from a fall of the robot.

    Args:
        features: function from rows of the data to their features (n, S).
        step_lengths: (N,) feature distance from each row to the next.
        end_of: (N,) last row of the trajectory of each row.
        active: (S,) bool, features of the look-up.

    Returns:
        (N,) bool, whether the step from each row is a jump.
    """
    has_next = np.arange(len(end_of)) < end_of
    rows = np.flatnonzero(has_next)
    if not len(rows):
        return has_next

    def changes(rows):
        return np.abs(features(rows + 1) - features(rows))[:, active]

    # change of each feature in ordinary steps; a feature that hardly ever changes is ignored
    sample = rows[::max(1, len(rows) // SAMPLED_STEPS)]
    ordinary = np.quantile(changes(sample), LONG_STEP_QUANTILE, axis=0)
    ordinary = np.where(ordinary > 0, ordinary, np.inf)

    # of the long steps, those that change a feature discontinuously
    is_long = step_lengths > np.quantile(step_lengths[has_next], LONG_STEP_QUANTILE)
    long_rows = np.flatnonzero(has_next & is_long)
    is_jump = (changes(long_rows) > JUMP_RATIO * ordinary).any(1)
    jumps = np.zeros(len(has_next), bool)
    jumps[long_rows[is_jump]] = True
    return jumps


def find_jump_sources(features, lengths):
    """Return the jump source (J,) int of each jump.

    Take-offs that are nearer to each other than the length of the shortest jump share a jump source, as do
    those that a chain of such take-offs connects. Take-offs are rounded to cells, since there may be many.

    Args:
        features: (J, d) active features of the states from which the data jump.
        lengths: (J,) feature distances of the jumps.
    """
    if not len(features):
        return np.zeros(0, int)

    # cells with take-offs
    scaled = np.round(CELLS_PER_JUMP * features / lengths.min())
    cells, cell_of = np.unique(scaled, axis=0, return_inverse=True)

    # connected components of neighbouring cells
    pairs = KDTree(cells).query_pairs(CELLS_PER_JUMP, output_type='ndarray')
    neighbours = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(cells), len(cells)))
    return connected_components(neighbours, directed=False)[1][cell_of.ravel()]


def estimate_jumps(paths, source_ids, hop):
    """Estimate the JumpModel of NodePaths.

    The landing probabilities are those of a jump source as a whole, since the jumps from a single node are
    too few to estimate them.

    Args:
        paths: NodePaths.
        source_ids: (J,) jump source of each jump, in the order of rows.
        hop: steps before a jump within which a node belongs to the jump source.
    """
    jump_rows = np.flatnonzero(paths.jumps)
    jumps_before = paths.jumps_before()

    # the states of the same trajectory from which a jump follows within a hop, without another jump between
    rows = jump_rows[:, None] - np.arange(hop)
    in_data = np.maximum(rows, 0)
    precedes = (rows >= 0) & (paths.end_of[in_data] == paths.end_of[jump_rows][:, None])
    precedes &= jumps_before[in_data] == jumps_before[jump_rows][:, None]

    # pairs of the nodes of these states and the jump source
    entered = np.broadcast_to(source_ids[:, None], rows.shape)[precedes]
    ones = np.ones(len(entered), np.int64)
    source_nodes, entered, _ = sum_by_pair(paths.labels[rows[precedes]], entered, ones)

    # relative frequencies of the landings of each jump source
    counts = np.ones(len(source_ids), np.int64)
    landed_from, landing_nodes, counts = sum_by_pair(source_ids, paths.labels[jump_rows + 1], counts)
    totals = np.bincount(landed_from, counts)
    landing_probs = counts / np.maximum(totals, 1)[landed_from]

    return JumpModel(
        source_nodes=source_nodes.astype(np.int32),
        source_ids=entered.astype(np.int32),
        landing_source_ids=landed_from.astype(np.int32),
        landing_nodes=landing_nodes.astype(np.int32),
        landing_probs=landing_probs.astype(np.float32),
    )
