"""The units of a model that pruning may take: what each adds, and how those that add least leave.

Importance is measured by what a unit contributes (Molchanov et al. 2017, arXiv:1611.06440): of a head and of
a hidden unit the norm of what it adds to the stream of vectors that layers read and write, of a dimension of
that stream the norms of what layers read of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.training.models.bert4rec import BERT4Rec
from recserve.training.models.hstu import HSTU, Layer
from recserve.training.models.sasrec import Block, SASRec

Prunable = SASRec | BERT4Rec | HSTU
# What linear layers were given, (rows, in_features) each.
Given = dict[nn.Module, Tensor]


@dataclass(frozen=True, slots=True)
class Importance:
    """Of one layer: of its ``heads`` (n_heads,), its ``hidden`` units, the ``dimensions`` (width,) it reads.

    ``hidden``: (1, n_hidden) of a feed-forward; in HSTU, which has none, (n_heads, n) of the values with
    their gates, and ``queries``, (n_heads, n), with their keys.
    """

    heads: Tensor
    hidden: Tensor
    dimensions: Tensor
    queries: Tensor | None = None


def layers_of(model: Prunable) -> list[Block | Layer]:
    """Returns the layers of a model, first to last."""
    layers = model.layers if isinstance(model, HSTU) else model.blocks
    return [cast(Block | Layer, layer) for layer in layers]


def given_to_layers(model: Prunable, run: Callable[[], object]) -> Given:
    """Returns what the linear layers of ``model`` are given while ``run`` asks it."""
    found: dict[nn.Module, list[Tensor]] = {}

    def remember(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.setdefault(module, []).append(arguments[0])

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(remember) for module in linear]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return {module: torch.cat(parts) for module, parts in found.items()}


@torch.no_grad()
def importance(layer: Block | Layer, given: Given) -> Importance:
    """Returns what the units of ``layer`` add."""
    heads = _added_by_heads(layer.project, given, layer.n_heads)
    if isinstance(layer, Block):
        wide, narrow = feed_forward(layer)
        read = _contributed(layer.qkv, given) + _contributed(wide, given)
        return Importance(heads, _contributed(narrow, given)[None], read)
    made = F.silu(layer.expand(given[layer.expand]))
    query, key = made[:, 2 * layer.project.in_features :].abs().mean(0).chunk(2)
    return Importance(
        heads,
        _contributed(layer.project, given).view(layer.n_heads, -1),
        _contributed(layer.expand, given),
        (query * key).view(layer.n_heads, -1),
    )


def feed_forward(block: Block) -> tuple[nn.Linear, nn.Linear]:
    """Returns the linear layers of a block's feed-forward: into its hidden units, and out of them."""
    return cast(nn.Linear, block.feed_forward[1]), cast(nn.Linear, block.feed_forward[3])


def keep_units(layer: Block | Layer, found: Importance, head_share: float, hidden_share: float) -> None:
    """Leaves ``layer`` its most important heads and hidden units."""
    heads = best(found.heads, head_share)
    if isinstance(layer, Block):
        _keep_heads(layer, heads)
        wide, narrow = feed_forward(layer)
        hidden = best(found.hidden[0], hidden_share)
        layer.feed_forward[1] = _sliced(wide, rows=hidden)
        layer.feed_forward[3] = _sliced(narrow, columns=hidden)
        return
    values = _of_heads(found.hidden, heads, hidden_share)
    queries = _of_heads(cast(Tensor, found.queries), heads, hidden_share)
    width, n_queries = found.hidden.numel(), cast(Tensor, found.queries).numel()
    first_query = 2 * width
    rows = [values, width + values, first_query + queries, first_query + n_queries + queries]
    layer.expand = _sliced(layer.expand, rows=torch.cat(rows))
    layer.project = _sliced(layer.project, columns=values)
    layer.attended_norm = _norm_of(layer.attended_norm, values)
    layer.n_heads = len(heads)


def keep_dimensions(model: Prunable, found: list[Importance], share: float) -> None:
    """Leaves the layers of ``model`` the most important dimensions of the stream; items keep all of theirs.

    A linear layer before the first layer and one behind the last take the others away and bring them back.
    """
    kept = best(torch.stack([one.dimensions for one in found]).sum(0), share)
    size = len(found[0].dimensions)
    if len(kept) == size:
        return
    for layer in layers_of(model):
        layer.project = _sliced(layer.project, rows=kept)
        if isinstance(layer, Block):
            wide, narrow = feed_forward(layer)
            layer.attention_norm = _norm_of(layer.attention_norm, kept)
            layer.qkv = _sliced(layer.qkv, columns=kept)
            layer.feed_forward[0] = _norm_of(cast(nn.LayerNorm, layer.feed_forward[0]), kept)
            layer.feed_forward[1] = _sliced(wide, columns=kept)
            layer.feed_forward[3] = _sliced(narrow, rows=kept)
        else:
            layer.input_norm = _norm_of(layer.input_norm, kept)
            layer.expand = _sliced(layer.expand, columns=kept)
    every = nn.Linear(size, size, bias=False)
    nn.init.eye_(every.weight)
    model.input_dropout = nn.Sequential(model.input_dropout, _sliced(every, rows=kept))
    norm = cast(nn.LayerNorm, model.norm)
    model.norm = nn.Sequential(_norm_of(norm, kept), _sliced(every, columns=kept))


def best(found: Tensor, share: float) -> Tensor:
    """Returns the indices of the most important of each row's units, ascending; ``found``: (..., n)."""
    n_kept = max(1, round(share * found.shape[-1]))
    return torch.topk(found, n_kept).indices.sort().values


def _of_heads(found: Tensor, heads: Tensor, share: float) -> Tensor:
    """Returns the places of the best units of each of ``heads``, in one row of all."""
    return (heads.unsqueeze(1) * found.shape[1] + best(found[heads], share)).flatten()


def _keep_heads(block: Block, kept: Tensor) -> None:
    width = block.project.in_features
    head = width // block.n_heads
    columns = (kept.unsqueeze(1) * head + torch.arange(head)).flatten()
    block.qkv = _sliced(block.qkv, rows=torch.cat([columns + part * width for part in range(3)]))
    block.project = _sliced(block.project, columns=columns)
    if block.gap_bias is not None:
        block.gap_bias = nn.Parameter(block.gap_bias.detach()[kept])
    block.n_heads = len(kept)


def _contributed(layer: nn.Linear, given: Given) -> Tensor:
    """Returns the norm of what each input of ``layer`` adds to its outputs, (in_features,)."""
    found: Tensor = given[layer].abs().mean(0) * torch.linalg.vector_norm(layer.weight, dim=0)
    return found


def _added_by_heads(project: nn.Linear, given: Given, n_heads: int) -> Tensor:
    parts = zip(given[project].chunk(n_heads, dim=1), project.weight.chunk(n_heads, dim=1), strict=True)
    added = [attended @ weight.T for attended, weight in parts]
    return torch.stack([torch.linalg.vector_norm(one, dim=-1).mean() for one in added])


def _sliced(layer: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Returns a layer with the given outputs (``rows``) and inputs (``columns``) of ``layer`` alone."""
    state = {name: value.detach() for name, value in layer.state_dict().items()}
    if rows is not None:
        state = {name: value[rows] for name, value in state.items()}
    if columns is not None:
        state["weight"] = state["weight"][:, columns]
    n_outputs, n_inputs = state["weight"].shape
    smaller = nn.Linear(n_inputs, n_outputs, bias="bias" in state)
    smaller.load_state_dict(state)
    return smaller


def _norm_of(norm: nn.LayerNorm, kept: Tensor) -> nn.LayerNorm:
    smaller = nn.LayerNorm(len(kept), eps=norm.eps)
    smaller.load_state_dict({name: value[kept] for name, value in norm.state_dict().items()})
    return smaller
