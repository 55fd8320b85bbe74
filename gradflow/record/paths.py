"""What feeds what: the outputs and weights that each output of a forward pass was computed from."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn.parameter import is_lazy

# A parameter whose first use, once it has its shape, is one of these is no weight: a bias, or the
# position of a token.
_ADDED = re.compile(r"(Add|Sub|Rsub|Cat|Stack|CopySlices)(Backward\w*)?")
_SHAPED = re.compile(
    r"(Expand|Repeat|View|UnsafeView|ReshapeAlias|Alias|AsStrided|T|Permute|Transpose|Clone|ToCopy|"
    r"Slice|Select|Squeeze|Unsqueeze|Unbind|Split|Narrow|Index|IndexSelect|Roll|ConstantPadNd|"
    r"Upsample\w+)Backward\w*"
)
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.\w+$")


def feeds(
    outputs: Mapping[str, Sequence[GradientEdge]],
    parameters: Mapping[str, Tensor],
    since: int,
) -> dict[str, tuple[str, ...]]:
    """Site -> the sites and weights that feed it directly, with no other site between.

    `outputs` are sites in order of execution, each with the edges that its tensors had when it had
    run: what acts in place later moves them. What was computed before the sequence number `since`
    of autograd is input, as the output of another pass is. A weight is a parameter of two
    dimensions or more that multiplies; it stands with the first site that follows on its use. Those
    that a layer without layers inside holds itself count in any case: where they are frozen, the
    graph lacks them.
    """
    weights = weights_of(parameters)
    leaves = {id(parameters[name]): name for names in weights.values() for name in names}
    position = {site: i for i, site in enumerate(outputs)}
    parents = _parents(outputs)
    owner: dict[tuple[object, int], str] = {}
    used: set[tuple[object, str]] = set()
    found = {}
    for site, edges in outputs.items():
        sites, uses = _behind(edges, owner, leaves, since)
        module = site.partition("#")[0]
        held = () if module in parents else weights.get(module, ())
        named = {name for _, name in uses - used}.union(held)
        used |= uses
        ordered = (name for name in leaves.values() if name in named)
        found[site] = (*sorted(sites, key=position.__getitem__), *ordered)
        owner |= {(edge.node, edge.output_nr): site for edge in edges}
    return found


def _parents(sites: Iterable[str]) -> set[str]:
    """The modules that have one of these sites inside."""
    names = {site.partition("#")[0] for site in sites} - {""}
    parts = [name.split(".") for name in names]
    return {".".join(part[:n]) for part in parts for n in range(len(part))}


def weights_of(parameters: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Module -> its parameters that have at least two dimensions above 1, in order of definition.

    Where it has none, its largest one of two dimensions, as in a linear layer of one unit. What a
    parametrization makes a weight of belongs to the weight's module.
    """
    by_module: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        if not is_lazy(parameter) and parameter.dim() > 1:
            module = _PARAMETRIZED.sub("", name.rpartition(".")[0])
            by_module.setdefault(module, []).append(name)
    found = {}
    for module, names in by_module.items():
        matrices = [n for n in names if parameters[n].numel() > max(parameters[n].shape)]
        largest = max(names, key=lambda name: parameters[name].numel())
        found[module] = tuple(matrices) or (largest,)
    return found


def _behind(
    edges: Sequence[GradientEdge],
    owner: Mapping[tuple[object, int], str],
    leaves: Mapping[int, str],
    since: int,
) -> tuple[set[str], set[tuple[object, str]]]:
    """The nearest sites on all ways back from `edges`, and each use of a weight: who uses which."""
    sites: set[str] = set()
    uses: set[tuple[object, str]] = set()
    seen: set[tuple[Any, bool]] = set()
    todo: list[tuple[Any, int, bool, Any]] = [(e.node, e.output_nr, False, None) for e in edges]
    while todo:
        node, output_nr, is_multiplied, user = todo.pop()
        if (node, output_nr) in owner:
            sites.add(owner[node, output_nr])
        elif (leaf := getattr(node, "variable", None)) is not None:
            if is_multiplied and id(leaf) in leaves:
                uses.add((user, leaves[id(leaf)]))
        elif node._sequence_nr() >= since and (node, is_multiplied) not in seen:
            seen.add((node, is_multiplied))
            name = node.name()
            if not _SHAPED.fullmatch(name):
                is_multiplied = not _ADDED.fullmatch(name)
            before = (pair for pair in node.next_functions if pair[0] is not None)
            todo += [(one, number, is_multiplied, node) for one, number in before]
    return sites, uses
