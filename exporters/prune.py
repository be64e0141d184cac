"""Structured pruning of transformers: whole attention heads and hidden units leave, the rest is taught.

Importance is measured on training histories, as in Molchanov et al. 2017 (arXiv:1611.06440) by what a part
contributes: the norm of what it adds to the residual stream. The item table is frozen, so the pruned model
and the full one share it; the smaller network learns to give the full one's query embeddings (distillation,
Hinton et al. 2015, arXiv:1503.02531; here on embeddings, since scores are inner products with one table).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from recserve.errors import InvalidRequest
from recserve.training.batches import training_batches
from recserve.training.data import Histories
from recserve.training.models.bert4rec import BERT4Rec
from recserve.training.models.sasrec import Block, SASRec

N_MEASURED_BATCHES = 4
BATCH_SIZE = 64
Prunable = SASRec | BERT4Rec


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """How much of each block is kept and how long the rest is taught."""

    hidden_share: float = 0.5
    """Share of the feed-forward's hidden units that stay."""
    second_share: float = 0.75
    """Tried as well, if it is larger, where the users of validation lose by ``hidden_share``."""
    head_share: float = 1.0
    """Share of the attention heads that stay, at least one."""
    epochs: int = 60
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden_share", "second_share", "head_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="above 0, at most 1")
        if self.epochs < 0:
            raise InvalidRequest("prune epochs", found=self.epochs, expected="0 or more")


def prune(model: Prunable, train: Histories, config: PruneConfig) -> Prunable:
    """Returns a smaller copy of ``model``, taught on the histories of ``train``; ``model`` stays as it is."""
    student = copy.deepcopy(model).eval()
    for block, (heads, hidden) in zip(
        _blocks(student), _importance(student, train, config.seed), strict=True
    ):
        _keep_heads(block, _best(heads, config.head_share))
        _keep_hidden(block, _best(hidden, config.hidden_share))
    _distil(student, model.eval(), train, config)
    return student.eval()


def _best(importance: Tensor, share: float) -> Tensor:
    """Returns the indices of the most important parts, ascending."""
    n_kept = max(1, round(share * len(importance)))
    return torch.sort(torch.topk(importance, n_kept).indices).values


@torch.no_grad()
def _importance(model: Prunable, train: Histories, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Returns, for each block, how much each head (n_heads,) and each hidden unit (n_hidden,) adds."""
    found = []
    inputs: dict[nn.Module, list[Tensor]] = {}

    def remember(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.setdefault(module, []).append(arguments[0])

    blocks = _blocks(model)
    watched = [layer for block in blocks for layer in (block.project, _narrow(block))]
    hooks = [layer.register_forward_pre_hook(remember) for layer in watched]
    for i, (history, _, gaps) in enumerate(_batches(model, train, seed, epoch=0)):
        if i == N_MEASURED_BATCHES:
            break
        model(history, gaps if model.config.time_gaps else None)
    for hook in hooks:
        hook.remove()
    for block in blocks:
        attended, hidden = torch.cat(inputs[block.project]), torch.cat(inputs[_narrow(block)])
        head = block.project.in_features // block.n_heads
        added = [
            (attended[:, i * head : (i + 1) * head] @ block.project.weight[:, i * head : (i + 1) * head].T)
            .norm(dim=-1)
            .mean()
            for i in range(block.n_heads)
        ]
        weight = _narrow(block).weight
        found.append((torch.stack(added), hidden.abs().mean(0) * weight.norm(dim=0)))
    return found


def _keep_heads(block: Block, kept: Tensor) -> None:
    head = block.project.in_features // block.n_heads
    columns = (kept.unsqueeze(1) * head + torch.arange(head)).flatten()
    width = block.project.in_features
    rows = torch.cat([columns + part * width for part in range(3)])
    block.qkv = _sliced(block.qkv, rows=rows)
    block.project = _sliced(block.project, columns=columns)
    if block.gap_bias is not None:
        block.gap_bias = nn.Parameter(block.gap_bias.detach()[kept])
    block.n_heads = len(kept)


def _keep_hidden(block: Block, kept: Tensor) -> None:
    block.feed_forward[1] = _sliced(cast(nn.Linear, block.feed_forward[1]), rows=kept)
    block.feed_forward[3] = _sliced(_narrow(block), columns=kept)


def _blocks(model: Prunable) -> list[Block]:
    return [cast(Block, block) for block in model.blocks]


def _narrow(block: Block) -> nn.Linear:
    """Returns the second layer of the feed-forward: hidden units → width."""
    return cast(nn.Linear, block.feed_forward[3])


def _sliced(layer: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Returns a layer with the given outputs (``rows``) and inputs (``columns``) of ``layer`` alone."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    smaller = nn.Linear(weight.shape[1], weight.shape[0])
    smaller.load_state_dict({"weight": weight.clone(), "bias": bias.clone()})
    return smaller


def _distil(student: Prunable, teacher: Prunable, train: Histories, config: PruneConfig) -> None:
    """Teaches ``student`` the query embeddings that ``teacher`` has after every prefix of each history.

    A model that looks both ways has to encode each prefix anew: it gets one of each history in an epoch.
    """
    student.item_embeddings.requires_grad_(False)
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=0.0)
    n_steps = max(1, config.epochs * -(-int((train.lengths >= 2).sum()) // BATCH_SIZE))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for history, _, gaps in _batches(student, train, config.seed, epoch):
            if isinstance(student, BERT4Rec):
                history = _random_prefixes(history, generator)
            given = gaps if student.config.time_gaps else None
            with torch.no_grad():
                wanted = _queries(teacher, history, given)
            loss = (_queries(student, history, given) - wanted).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _queries(model: Prunable, history: Tensor, gaps: Tensor | None) -> Tensor:
    """Returns query embeddings (n, embedding_size), of every prefix where one pass makes them all."""
    if isinstance(model, BERT4Rec):
        return model.encode(history)
    return cast(Tensor, model(history, gaps))[history >= 0]


def _random_prefixes(history: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a prefix of one item or more of each row of ``history``, left-padded again."""
    length = history.shape[1]
    n_items = (history >= 0).sum(1, keepdim=True)
    n_dropped = (torch.rand(n_items.shape, generator=generator) * n_items).long()
    source = torch.arange(length) - n_dropped
    return torch.where(source >= 0, history.gather(1, source.clamp(min=0)), -1)


def _batches(
    model: Prunable, train: Histories, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return training_batches(
        train, max_history=model.config.max_history, batch_size=BATCH_SIZE, seed=seed, epoch=epoch
    )
