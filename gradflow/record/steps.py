"""What a recorded step holds on the device, and how recorded steps become a Trace on the host."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradflow.record.histograms import HISTOGRAMS, N_BINS, occupied
from gradflow.record.measures import READS, Measure
from gradflow.record.memory import HOST
from gradflow.record.sums import GRADIENT_SUMS, OUTPUT_SUMS
from gradflow.record.trace import Trace

DEAD_WINDOW = 16  # full steps; the formula of `output_dead_window` names it
# What is summed of a site in each forward pass; of outputs that were not read, their sizes alone.
SUMS = {
    "outputs": OUTPUT_SUMS,
    "sizes": OUTPUT_SUMS[:1],
    "gradients": tuple(f"output_grad_{name}" for name in GRADIENT_SUMS),
}
MOST_LAYOUTS = 8  # that are shared: full steps and others, whole batches and the last of an epoch


class Site(NamedTuple):
    """An output: the module's qualified name and which call of it in one forward pass."""

    module: str
    call: int

    def __str__(self) -> str:
        return self.module if self.call == 0 else f"{self.module}#{self.call}"


@dataclass(slots=True, eq=False)
class PassSums:
    """What a forward pass and the backward passes that count brought: sums on their device."""

    outputs: dict[Site, Tensor] = field(default_factory=dict)  # of OUTPUT_SUMS
    active: dict[Site, Tensor] = field(default_factory=dict)  # (channels,) uint8
    gradients: dict[Site, Tensor] = field(default_factory=dict)  # of GRADIENT_SUMS
    own: dict[tuple[str, Site], Tensor] = field(default_factory=dict)  # the user's own measures
    sizes: dict[Site, int] = field(default_factory=dict)  # elements, also where no sums were taken


@dataclass(slots=True, eq=False)
class ParameterSums:
    """What was read of the parameters in one step."""

    sizes: dict[str, int] = field(default_factory=dict)  # elements
    # Of READS: which parameters, and (parameters, sums).
    reads: dict[str, tuple[tuple[str, ...], Tensor]] = field(default_factory=dict)
    own: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # the user's own measures


@dataclass(frozen=True)
class Layout:
    """What the numbers of a recorded step mean. Steps that are alike share one."""

    passes: tuple[tuple[str, tuple[Any, ...]], ...]  # of SUMS, or "own": of which sites
    channels: tuple[tuple[Site, int], ...]
    sizes: tuple[tuple[str, int], ...]
    reads: tuple[tuple[str, tuple[str, ...]], ...]
    own_of_parameters: tuple[tuple[str, str], ...]

    def sites(self) -> set[Site]:
        kinds = ("outputs", "sizes")
        return {site for kind, sites in self.passes if kind in kinds for site in sites}


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """The numbers of one optimizer step, still on their device, in the order of `layout`.

    Few objects, whatever the network: a garbage collector that had to walk thousands of small
    tensors would cost more than the sums do.
    """

    step: int
    layout: Layout
    of_passes: Tensor  # (processes, n) float64
    channels: Tensor  # (processes, m) uint8
    of_parameters: Tensor  # (k,) float64
    grad_scale: Tensor  # () of the output gradients, under automatic mixed precision; else 1
    found_inf: Tensor | None  # above 0 where a fused optimizer skipped its step

    def was_skipped(self) -> bool:
        """Whether the optimizer met an inf and changed nothing. This waits for the device."""
        return self.found_inf is not None and bool(self.found_inf > 0)


def compact(
    step: int,
    passes: Sequence[PassSums],
    parameters: ParameterSums,
    grad_scale: Tensor,
    found_inf: Tensor | None,
    known: list[Layout],
) -> RecordedStep:
    """One step as a few long vectors. Its layout is one of the `known`, where it is the same."""
    if any(one.sizes.keys() - one.outputs.keys() for one in passes):
        # Of a pass that began in another step nothing else is known: no sum over all of them is.
        passes = [replace(one, outputs={}, active={}) for one in passes]
    sites: list[tuple[str, tuple[Any, ...]]] = []
    of_passes: list[Tensor] = []
    for one in passes:
        sizes = {} if one.outputs else one.sizes
        for kind, keys, numbers in (
            ("outputs", one.outputs, one.outputs.values()),
            ("sizes", sizes, _on_device(sizes.values(), one)),
            ("gradients", one.gradients, one.gradients.values()),
            ("own", one.own, one.own.values()),
        ):
            sites.append((kind, tuple(keys)))
            of_passes += numbers
    active = [item for one in passes for item in one.active.items()]
    layout = Layout(
        passes=tuple(sites),
        channels=tuple((site, x.numel()) for site, x in active),
        sizes=tuple(parameters.sizes.items()),
        reads=tuple((read, names) for read, (names, _) in parameters.reads.items()),
        own_of_parameters=tuple(parameters.own),
    )
    of_parameters = [sums.reshape(-1) for _, sums in parameters.reads.values()]
    return RecordedStep(
        step,
        _shared(layout, known),
        _joined(of_passes, torch.float64).unsqueeze(0),
        _joined([x for _, x in active], torch.uint8).unsqueeze(0),
        _joined([*of_parameters, *parameters.own.values()], torch.float64),
        grad_scale,
        found_inf,
    )


def _shared(layout: Layout, known: list[Layout]) -> Layout:
    for one in known:
        if one == layout:
            return one
    known.append(layout)
    del known[:-MOST_LAYOUTS]
    return layout


def _on_device(sizes: Collection[int], like: PassSums) -> list[Tensor]:
    """The numbers as a vector beside the gradients, without a wait for the device."""
    if not sizes:
        return []
    device = next((sums.device for sums in like.gradients.values()), HOST)
    is_pinned = device.type == "cuda"
    vector = torch.tensor(list(sizes), dtype=torch.float64, device=HOST, pin_memory=is_pinned)
    return [vector.to(device, non_blocking=True)]


def _joined(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """One tensor, on the device of the tensors; a model that is spread out meets on the host."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    return torch.cat(tensors) if tensors else torch.empty(0, dtype=dtype, device=HOST)


class DeadChannels:
    """For how many full steps in a row each channel of each site has been 0 everywhere."""

    def __init__(self) -> None:
        self._idle: dict[str, np.ndarray] = {}
        self._n_steps: dict[str, int] = {}

    def see(self, site: str, active: np.ndarray) -> tuple[float, float]:
        """Shares of channels that are dead in this step, and in the whole window (else NaN)."""
        idle = self._idle.get(site)
        if idle is None or len(idle) != len(active):
            idle, self._n_steps[site] = np.zeros(len(active), dtype=np.int64), 0
        idle = self._idle[site] = np.where(active, 0, idle + 1)
        self._n_steps[site] += 1
        window = np.count_nonzero(idle >= DEAD_WINDOW) / len(idle)
        is_full = self._n_steps[site] >= DEAD_WINDOW
        return np.count_nonzero(idle) / len(idle), window if is_full else np.nan

    def state_dict(self) -> dict[str, Tensor]:
        """Per site the idle steps of each channel, and behind them the number of steps seen."""
        return {
            site: torch.tensor([*idle, self._n_steps[site]], dtype=torch.int64, device=HOST)
            for site, idle in self._idle.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self._idle = {site: counts[:-1].numpy().copy() for site, counts in state.items()}
        self._n_steps = {site: int(counts[-1]) for site, counts in state.items()}


def to_trace(
    steps: Sequence[RecordedStep],
    measures: Sequence[Measure],
    depth: Mapping[Site, int],
    kinds: Mapping[str, str],
    dead: DeadChannels,
) -> Trace:
    """Finish the measures of some steps on the host, in float64."""
    layouts = list({id(step.layout): step.layout for step in steps}.values())
    sites = set().union(*(layout.sites() for layout in layouts))
    outputs = sorted(sites, key=depth.__getitem__)
    parameters = list(dict.fromkeys(name for layout in layouts for name, _ in layout.sizes))
    rows = _in_depth_order(outputs, parameters, depth)
    table = _Table(len(steps), list(rows))
    for layout in layouts:
        rows_of_it = [i for i, step in enumerate(steps) if step.layout is layout]
        table.add(np.array(rows_of_it), [steps[i] for i in rows_of_it])
    table.add_dead_channels(steps, dead)
    numbers = np.array([step.step for step in steps], dtype=np.int64)
    return Trace(
        steps=numbers,
        sites=tuple(rows),
        kinds=tuple(_site_kind(name, rows[name], kinds) for name in rows),
        sizes=table.sizes(),
        values={measure.name: table.finish(measure) for measure in measures},
        histograms=occupied(numbers, tuple(rows), table.histograms),
    )


class _Table:
    """Sums by name, each of shape (steps, sites), NaN where nothing was taken."""

    def __init__(self, n_steps: int, sites: Sequence[str]) -> None:
        shape = (n_steps, len(sites))
        self._column = {site: i for i, site in enumerate(sites)}
        # A measure may ask for what none of these steps brought.
        self._sums: defaultdict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan))
        self._own: defaultdict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan))
        self.histograms: defaultdict[str, np.ndarray] = defaultdict(
            lambda: np.zeros((*shape, N_BINS), dtype=np.int64)
        )

    def finish(self, measure: Measure) -> np.ndarray:
        if measure.finish is None:
            return self._own[measure.name]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            finished: np.ndarray = measure.finish(self._sums)
        return finished

    def sizes(self) -> np.ndarray:
        """(sites,): elements of the parameter, or of the output in the first step that has it."""
        sizes = np.where(np.isnan(self._sums["n"]), self._sums["size"], self._sums["n"])
        first = (~np.isnan(sizes)).argmax(axis=0)
        found: np.ndarray = np.nan_to_num(sizes[first, np.arange(sizes.shape[1])])
        return found.astype(np.int64)

    def add(self, rows: np.ndarray, steps: Sequence[RecordedStep]) -> None:
        """Steps of one layout."""
        layout = steps[0].layout
        numbers = _Reader(torch.stack([step.of_passes for step in steps]).cpu().numpy())
        n_own = Counter(key for kind, keys in layout.passes if kind == "own" for key in keys)
        for name, site in n_own:
            self._own[name][rows, self._column[str(site)]] = 0
        for kind, sites in layout.passes:
            for name in SUMS.get(kind, ()):
                self._sums[name][np.ix_(rows, self._columns(sites))] = 0
        for kind, sites in layout.passes:
            if kind in SUMS:
                self._add_up(rows, SUMS[kind], sites, numbers)
                continue
            for name, site in sites:
                value = numbers.take(1)[..., 0].mean(axis=1) / n_own[name, site]
                self._own[name][rows, self._column[str(site)]] += value
        # DistributedDataParallel averages: a process's loss is 1/W of the loss of all W.
        scale = torch.stack([step.grad_scale for step in steps]).cpu().double().numpy()
        scale = scale * steps[0].of_passes.shape[0]
        self._sums["output_grad_square"][rows] /= scale[:, None] ** 2
        self._add_parameters(rows, layout, steps)

    def _add_up(
        self, rows: np.ndarray, names: Sequence[str], sites: Sequence[Site], numbers: "_Reader"
    ) -> None:
        """The sums of one forward pass, over the processes."""
        at = np.ix_(rows, self._columns(sites))
        sums = numbers.take(len(names) * len(sites))
        sums = sums.reshape(*sums.shape[:2], len(sites), len(names))
        for i, name in enumerate(names):
            table, one = self._sums[name], sums[..., i]
            if name == "max_abs":
                table[at] = np.maximum(table[at], one.max(axis=1))
            else:
                table[at] += one.sum(axis=1)

    def _add_parameters(
        self, rows: np.ndarray, layout: Layout, steps: Sequence[RecordedStep]
    ) -> None:
        sizes = dict(layout.sizes)
        self._sums["size"][np.ix_(rows, self._columns(sizes))] = list(sizes.values())
        numbers = _Reader(torch.stack([step.of_parameters for step in steps]).cpu().numpy())
        for read, parameters in layout.reads:
            at = np.ix_(rows, self._columns(parameters))
            if read in HISTOGRAMS:
                counts = numbers.take(N_BINS * len(parameters))
                self.histograms[read][at] = counts.reshape(len(steps), len(parameters), N_BINS)
                continue
            names = READS[read]
            sums = numbers.take(len(names) * len(parameters))
            sums = sums.reshape(len(steps), len(parameters), len(names))
            for i, name in enumerate(names):
                self._sums[name][at] = sums[..., i]
        for name, parameter in layout.own_of_parameters:
            self._own[name][rows, self._column[parameter]] = numbers.take(1)[..., 0]

    def add_dead_channels(self, steps: Sequence[RecordedStep], dead: DeadChannels) -> None:
        for index, step in enumerate(steps):
            for site, active in _active_channels(step).items():
                column = self._column[str(site)]
                shares = dead.see(str(site), active)
                self._sums["dead"][index, column], self._sums["dead_window"][index, column] = shares

    def _columns(self, sites: Iterable[object]) -> np.ndarray:
        return np.array([self._column[str(site)] for site in sites], dtype=np.intp)


class _Reader:
    """Hands out the numbers along the last axis, one stretch after the other."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = numbers
        self._next = 0

    def take(self, n: int) -> np.ndarray:
        self._next += n
        return self._numbers[..., self._next - n : self._next]


def _active_channels(step: RecordedStep) -> dict[Site, np.ndarray]:
    """(channels,) per site: a channel is active in a step if it is in one pass of one process."""
    numbers = _Reader(step.channels.cpu().numpy().max(axis=0, initial=0))
    active: dict[Site, np.ndarray] = {}
    for site, n in step.layout.channels:
        now, before = numbers.take(n), active.get(site)
        if before is None or len(before) == n:
            active[site] = now if before is None else before | now
        else:  # a dimension that changes from pass to pass counts no channels: all stand alone
            active[site] = np.concatenate([before, now])
    return active


def _in_depth_order(
    outputs: Sequence[Site], parameters: Sequence[str], depth: Mapping[Site, int]
) -> dict[str, str]:
    """Site name -> module name, the input end first.

    Outputs stand in order of execution, and a module's parameters right after its output. The
    parameters of a module that was not seen to run follow those registered before them.
    """
    order: list[tuple[tuple[int, int, int], str, str]] = []
    for site in outputs:
        order.append(((depth[site], 0, 0), str(site), site.module))
    last = -1
    for index, name in enumerate(parameters):
        module = name.rpartition(".")[0]
        last = depth.get(Site(module, 0), last)
        order.append(((last, 1, index), name, module))
    return {name: module for _, name, module in sorted(order)}


def _site_kind(name: str, module: str, kinds: Mapping[str, str]) -> str:
    kind = kinds.get(module, "other")
    return kind if name.partition("#")[0] == module else f"{kind}.{name.rpartition('.')[2]}"
