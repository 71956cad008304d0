"""Runs of [activation ->] transposed convolution [-> batch norm] [-> activation] in a graph, made into chains."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fastgan.nn.chain import is_conv_transpose, is_layer, run_chain
from fastgan.nn.guards import Guards, has_hooks
from fastgan.nn.modules import BatchNormAct2d, _ConvTransposeBatchNormAct

MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
# target -> (activation, whether in place)
FUNCTIONS: dict[Any, tuple[str, bool]] = {
    F.relu: ("relu", False),
    torch.relu: ("relu", False),
    torch.relu_: ("relu", True),
    F.leaky_relu: ("leaky_relu", False),
    F.leaky_relu_: ("leaky_relu", True),
    F.tanh: ("tanh", False),
    torch.tanh: ("tanh", False),
    torch.tanh_: ("tanh", True),
    F.sigmoid: ("sigmoid", False),
    torch.sigmoid: ("sigmoid", False),
    torch.sigmoid_: ("sigmoid", True),
    F.silu: ("silu", False),
    F.gelu: ("gelu", False),
}
METHODS = {f"{name}{end}": (name, bool(end)) for name in ("relu", "tanh", "sigmoid") for end in ("", "_")}
CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
# Their results are new tensors, which nobody but their users in the graph sees.
FRESH_MODULES = (_ConvNd, _NormBase, nn.Linear)
FRESH_FUNCTIONS = (torch.cat, operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul)


class Part(NamedTuple):
    """kind: "conv", "norm" or "act".  where: the module's path, "" for a function;  slope: of an activation, a number
    or the path of one."""

    kind: str
    where: str
    act: str = "none"
    slope: float | str = 0.0


@dataclass
class Piece:
    """What one node of the graph contributes."""

    node: fx.Node
    source: fx.Node
    parts: list[Part]
    in_place: bool = False


@dataclass
class Step:
    """conv, norm: paths, or ""."""

    conv: str = ""
    norm: str = ""
    act: str = "none"
    slope: float | str = 0.0
    names: list[str] = field(default_factory=list)


@dataclass
class Chain:
    nodes: list[fx.Node]
    steps: list[Step]

    @property
    def worth_it(self) -> bool:
        """Whether there is something to join: two layers or more."""
        parts = [bool(step.conv) + bool(step.norm) + (step.act != "none") for step in self.steps]
        return sum(parts) > 1


@dataclass
class Left:
    """A layer that is not in any chain, and why."""

    where: str
    reason: str


def find_chains(root: nn.Module, graph: fx.Graph, guards: Guards) -> tuple[list[Chain], list[Left]]:
    finder = _Finder(root, graph, guards)
    chains = finder.chains()
    return chains, finder.left(chains)


def rewrite(graph: fx.Graph, chains: list[Chain]) -> None:
    """Puts one call of run_chain in the place of each chain's last node."""
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        with graph.inserting_before(last):
            stages = tuple(
                (
                    " + ".join(step.names),
                    _attribute(graph, step.conv),
                    _attribute(graph, step.norm),
                    step.act,
                    _attribute(graph, step.slope) if isinstance(step.slope, str) else step.slope,
                )
                for step in chain.steps
            )
            call = graph.call_function(run_chain, (_input(first), stages))
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


def _attribute(graph: fx.Graph, path: str) -> fx.Node | None:
    return graph.create_node("get_attr", path, (), {}) if path else None


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))


class _Finder:
    def __init__(self, root: nn.Module, graph: fx.Graph, guards: Guards) -> None:
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.guards = guards
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.why: dict[fx.Node, str] = {}
        calls = Counter(id(self.modules.get(n.target)) for n in graph.nodes if n.op == "call_module")
        self.calls = calls
        self.pieces: dict[fx.Node, Piece] = {}
        for node in graph.nodes:
            if (piece := self._piece(node)) is not None:
                self.pieces[node] = piece
        for node in [n for n, piece in self.pieces.items() if piece.in_place and not self._alone(piece)]:
            self.why[node] = "it works in place on a value that is used elsewhere too"
            del self.pieces[node]

    # ---- nodes

    def _piece(self, node: fx.Node) -> Piece | None:
        source = _input(node)
        if not isinstance(source, fx.Node):
            return None
        if node.op == "call_module":
            found = self._module_parts(node)
        elif node.op == "call_function" and node.target in FUNCTIONS:
            found = self._function_parts(node, *FUNCTIONS[node.target])
        elif node.op == "call_method" and node.target in METHODS and len(node.args) == 1 and not node.kwargs:
            act, in_place = METHODS[str(node.target)]
            found = [Part("act", "", act)], in_place
        else:
            return None
        return None if found is None else Piece(node, source, *found)

    def _module_parts(self, node: fx.Node) -> tuple[list[Part], bool] | None:
        path = str(node.target)
        module = self.modules[path]
        if isinstance(module, (_ConvTransposeNd, _NormBase, *_BLOCKS)):
            why = self._why_not(node, module)
            if why:
                self.why[node] = why
                return None
            return self._layer_parts(path, module), False
        if type(module).forward is nn.Identity.forward:
            return self._nothing(node, module)
        for kind, act in MODULES.items():
            if type(module).forward is kind.forward:  # type: ignore[attr-defined]
                return self._act_parts(node, path, module, act)
        return None

    def _why_not(self, node: fx.Node, module: nn.Module) -> str:
        if self.calls[id(module)] > 1:
            return "called more than once"
        if len(node.args) + len(node.kwargs) > 1:
            return "called with an output_size"
        layers = [module.conv, module.norm] if isinstance(module, _ConvTransposeBatchNormAct) else [module]
        self.guards.layers += [layer for layer in layers if is_layer(layer)]
        for layer in layers:
            if isinstance(layer, nn.ConvTranspose3d):
                return "in three dimensions"
            if isinstance(layer, (_ConvTransposeNd, _NormBase)) and not isinstance(
                layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.modules.batchnorm._BatchNorm)
            ):
                return f"{type(layer).__name__} is not batch normalisation"
            if not is_layer(layer):
                return "it has hooks, or a forward of its own"
        return "it has hooks" if isinstance(module, _BLOCKS) and has_hooks(module) else ""

    def _layer_parts(self, path: str, module: nn.Module) -> list[Part]:
        if isinstance(module, _ConvTransposeBatchNormAct):
            parts = [Part("conv", f"{path}.conv"), Part("norm", f"{path}.norm")]
        else:
            parts = [Part("conv" if is_conv_transpose(module) else "norm", path)]
        if isinstance(module, _BLOCKS):
            self.guards.hookless.append(module)
            self.guards.add_attribute(module, "act", module.act)
            if module.act != "none":
                parts.append(Part("act", path, module.act, f"{path}.negative_slope"))
        return parts

    def _nothing(self, node: fx.Node, module: nn.Module) -> tuple[list[Part], bool] | None:
        """An nn.Identity, as whoever takes a layer out of a model leaves behind."""
        if has_hooks(module) or "forward" in module.__dict__ or len(node.args) + len(node.kwargs) > 1:
            return None
        self.guards.hookless.append(module)
        return [], False

    def _act_parts(self, node: fx.Node, path: str, module: Any, act: str) -> tuple[list[Part], bool] | None:
        if act == "gelu":
            self.guards.add_attribute(module, "approximate", module.approximate)
        if has_hooks(module) or "forward" in module.__dict__ or len(node.args) + len(node.kwargs) > 1:
            return None
        if act == "gelu" and module.approximate != "none":
            self.why[node] = "GELU by tanh is not among the activations"
            return None
        self.guards.hookless.append(module)
        in_place = bool(getattr(module, "inplace", False))
        self.guards.add_attribute(module, "inplace", getattr(module, "inplace", "<no such attribute>"))
        slope = f"{path}.negative_slope" if act == "leaky_relu" else 0.0
        return [Part("act", path, act, slope)], in_place

    def _function_parts(self, node: fx.Node, act: str, in_place: bool) -> tuple[list[Part], bool] | None:
        rest = [*node.args[1:], *(v for k, v in node.kwargs.items() if k != "input")]
        if any(isinstance(value, fx.Node) for value in rest) or "out" in node.kwargs:
            return None
        if act == "gelu":
            return ([Part("act", "", act)], False) if not rest or rest == ["none"] else None
        slope = 0.0
        if act == "leaky_relu":
            given = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
            if not isinstance(given, (int, float)):
                return None
            slope = float(given)
        flag = (
            node.args[-1] if len(node.args) == (3 if act == "leaky_relu" else 2) else node.kwargs.get("inplace", False)
        )
        return [Part("act", "", act, slope)], in_place or bool(flag)

    def _alone(self, piece: Piece) -> bool:
        """Whether nobody else sees what the activation works on."""
        source = piece.source
        if len(source.users) > 1:
            return False
        if source in self.pieces:
            return bool(self.pieces[source].parts) or self._alone(self.pieces[source])
        if source.op == "call_module":
            module = self.modules[str(source.target)]
            if not isinstance(module, FRESH_MODULES) or module._forward_hooks:  # a hook may keep what it sees
                return False
            if not has_hooks(module):
                self.guards.hookless.append(module)
            return True
        return source.op == "call_function" and source.target in FRESH_FUNCTIONS

    # ---- chains

    def chains(self) -> list[Chain]:
        taken: set[fx.Node] = set()
        found: list[Chain] = []
        for node in self.pieces:
            if node in taken:
                continue
            path = self._path(node)
            taken.update(path)
            found += [chain for chain in self._split(path) if chain.worth_it and self._undisturbed(chain)]
        return found

    def _path(self, node: fx.Node) -> list[fx.Node]:
        """From `node` on as long as each one is the only user of the one before."""
        path = [node]
        while len(path[-1].users) == 1:
            (user,) = path[-1].users
            if user not in self.pieces or self.pieces[user].source is not path[-1] or user in path:
                break
            path.append(user)
        return path

    def _split(self, path: list[fx.Node]) -> list[Chain]:
        """Chains in which a normalisation follows a convolution, an activation one of both, or they begin."""
        chains: list[Chain] = []
        state = ""
        for node in path:
            if not self.pieces[node].parts and chains:
                chains[-1].nodes.append(node)
            for part in self.pieces[node].parts:
                begins = (part.kind == "norm" and state != "conv") or (part.kind == "act" and state == "act")
                if not chains or begins:
                    chains.append(Chain([], [Step()]))
                chain, state = chains[-1], part.kind
                if part.kind == "conv" and (chain.nodes or chain.steps[-1].names):
                    chain.steps.append(Step())
                if node not in chain.nodes:
                    chain.nodes.append(node)
                _extend(chain.steps[-1], part)
        return chains

    def _undisturbed(self, chain: Chain) -> bool:
        """Whether the chain may run as a whole where its last node is: nothing is changed in place meanwhile."""
        first, last = chain.nodes[0], chain.nodes[-1]
        source = self.pieces[first].source
        between = [n for n, i in self.order.items() if self.order[first] < i < self.order[last]]
        for node, i in self.order.items():
            if i < self.order[last] and self._reads_statistics(node, chain):
                for own in chain.nodes:
                    self.why[own] = f"{node.name} reads running statistics before the chain is done"
                return False
        others = [n for n in [*between, *source.users] if n not in chain.nodes]
        for node in others:
            if self._may_change(node):
                for own in chain.nodes:
                    self.why[own] = f"{node.name} may change a value in place meanwhile"
                return False
        return True

    def _reads_statistics(self, node: fx.Node, chain: Chain) -> bool:
        """Whether the forward itself reads a buffer that a normalisation of the chain updates."""
        if node.op != "get_attr":
            return False
        where, _, name = str(node.target).rpartition(".")
        owner = self.modules.get(where)
        updates = any(owner is self.modules[step.norm] for step in chain.steps if step.norm)
        return updates and name in ("running_mean", "running_var", "num_batches_tracked")

    def _may_change(self, node: fx.Node) -> bool:
        """Whether this node may change a tensor in place."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            mine = not type(module).__module__.startswith("torch.nn") and node not in self.pieces
            return bool(getattr(module, "inplace", False)) or mine
        if node.op == "call_method":
            return str(node.target).endswith("_")
        if node.op == "call_function":
            name = getattr(node.target, "__name__", "")
            module = str(getattr(node.target, "__module__", "")).lstrip("_")
            known = module.split(".")[0] in ("torch", "operator", "builtins", "math")
            in_place = name.endswith("_") or name in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace"))
            return in_place or "out" in node.kwargs or not known or True in node.args[2:] or name == "setitem"
        return False

    def left(self, chains: list[Chain]) -> list[Left]:
        """Layers that could have been in a chain but for something."""
        inside = {node for chain in chains for node in chain.nodes}
        found = []
        for node in self.order:
            if node.op == "call_function" and node.target in (*CONVOLUTIONS, F.batch_norm):
                found.append(Left(node.name, "called as a function, not as a module"))
            if node in inside or node.op != "call_module":
                continue
            module = self.modules[str(node.target)]
            if isinstance(module, (_ConvTransposeNd, _NormBase, nn.GroupNorm, *_BLOCKS)) or node in self.why:
                reason = self.why.get(node) or self._default_reason(module)
                found.append(Left(f"{node.target} ({type(module).__name__})", reason))
        return found

    def _default_reason(self, module: nn.Module) -> str:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return "no known activation behind it, no transposed convolution before it"
        if isinstance(module, _ConvTransposeNd):
            return "no batch normalisation or known activation next to it"
        return "not batch normalisation"


_BLOCKS = (BatchNormAct2d, _ConvTransposeBatchNormAct)
_IN_PLACE_OPERATORS = {n for n in dir(operator) if n.startswith("i") and hasattr(operator, n[1:])} | {"ipow", "iadd"}


def _extend(step: Step, part: Part) -> None:
    if part.kind == "conv":
        step.conv = part.where
    elif part.kind == "norm":
        step.norm = part.where
    else:
        step.act, step.slope = part.act, part.slope
    step.names.append(part.where or part.act)
