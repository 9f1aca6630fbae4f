"""Layers beside their slow twins, and every mix of components: cached equals whole, nothing leaks."""

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.errors import ConfigError
from llm.inference.kv_cache import KVCache
from llm.models import ForwardContext, PagedCache, positions_of
from llm.models.layers import attend as attend_module
from llm.models.layers.attend import AttentionRule, attend
from llm.models.layers.moe import MoE, grouped_linear, is_grouped
from llm.settings.model import ExpertsConfig
from tests.mixes import BASE, FEED_FORWARD, MIXES, build
from tests.reference.attention import attention_by_definition
from tests.reference.moe import moe_by_token


@torch.no_grad()
@pytest.mark.parametrize("name", MIXES)
def test_cached_decoding_equals_the_whole_pass(name: str) -> None:
    model = build(MIXES[name])
    token_ids = torch.randint(0, 61, (20,))
    whole = model(token_ids, positions_of((20,)), ForwardContext.for_sequences((20,)))
    blocks = torch.tensor([[3, 0, 5, 1, 4]], dtype=torch.int32)
    cache = KVCache.allocate(model.config, 6, 4, torch.float32, torch.device("cpu"))
    parts = []
    for start, stop in [(0, 9), (9, 12), *((place, place + 1) for place in range(12, 20))]:
        positions = torch.arange(start, stop)
        slots = blocks[0, positions // 4].long() * 4 + positions % 4
        paged = PagedCache(cache.keys, cache.values, slots, blocks)
        parts.append(model(token_ids[positions], positions, ForwardContext((stop - start,), (stop,), cache=paged)))
    assert whole.std() > 0.01
    assert (torch.cat(parts) - whole).abs().max() <= 1e-4


@pytest.mark.parametrize("name", MIXES)
def test_a_token_sees_its_own_past_alone(name: str) -> None:
    model = build(MIXES[name])
    token_ids, lengths = torch.randint(0, 61, (16,)), (4, 9, 3)
    embedded: list[Tensor] = []
    model.embed_tokens.register_forward_hook(lambda module, given, output: embedded.append(output) or None)
    logits = model(token_ids, positions_of(lengths), ForwardContext.for_sequences(lengths))
    (gradient,) = torch.autograd.grad(logits[9].square().sum(), embedded[0])
    reached = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert reached == [4, 5, 6, 7, 8, 9]


RULES = {
    "plain": AttentionRule(0.3),
    "window": AttentionRule(0.3, window=5),
    "capped": AttentionRule(0.5, softcap=1.5),
    "both": AttentionRule(0.5, window=7, softcap=1.5),
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["sdpa", "math", "flex"])
@pytest.mark.parametrize("lengths", [(23,), (8, 8, 8), (3, 17, 1)])
@pytest.mark.parametrize("name", RULES)
def test_backends_equal_the_definition(
    name: str, lengths: tuple[int, ...], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend_module, "QUERY_BLOCK", 6)  # so that short sequences are cut as long ones are
    num_tokens = sum(lengths)
    query, key, value = (torch.randn(num_tokens, heads, 16) for heads in (4, 2, 2))
    wanted = attention_by_definition(query, key, value, lengths, RULES[name])
    assert (attend(query, key, value, lengths, RULES[name], backend=backend) - wanted).abs().max() <= 1e-5


def test_a_backend_that_cannot_run_says_why() -> None:
    parts = [torch.randn(3, 1, 8) for _ in range(3)]
    with pytest.raises(ConfigError, match="must be one of auto, sdpa, math, flex, flash, got 'fast'"):
        attend(*parts, (3,), AttentionRule(1.0), backend="fast")
    with pytest.raises(ConfigError, match=r"`flash` (needs the package flash-attn|runs on CUDA only)"):
        attend(*parts, (3,), AttentionRule(1.0), backend="flash")
    with pytest.raises(ConfigError, match=r"`flex` has no dropout, got 0\.1"):
        attend(*parts, (3,), AttentionRule(1.0, dropout=0.1), backend="flex")


EXPERTS = {
    "normalised": ExpertsConfig(num_experts=6, moe_intermediate_size=20),
    "plain": ExpertsConfig(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20, norm_topk_prob=False),
    "softmax of the best": ExpertsConfig(num_experts=4, moe_intermediate_size=20, softmax_first=False),
    "shared": ExpertsConfig(moe_intermediate_size=20, shared_expert_intermediate_size=28, routed_scaling_factor=2.0),
    "shared and weighed": ExpertsConfig(
        moe_intermediate_size=20, shared_expert_intermediate_size=28, shared_expert_gate=True
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_equal_one_token_at_a_time(name: str) -> None:
    layer = build(msgspec.structs.replace(BASE, mlp="moe", experts=EXPERTS[name])).layers[0].mlp
    assert isinstance(layer, MoE)
    hidden_states = torch.randn(37, 32, requires_grad=True)
    wanted = moe_by_token(layer, hidden_states)
    output = layer(hidden_states)
    assert (output - wanted).abs().max() <= 1e-5
    parameters = [hidden_states, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(each.square().sum(), parameters) for each in (output, wanted))
    assert all((one - other).abs().max() <= 1e-3 for one, other in zip(ours, theirs, strict=True))


def test_experts_without_a_token_are_left_out() -> None:
    rows, weights = torch.randn(5, 8), torch.randn(4, 3, 8)
    product = grouped_linear(rows, weights, torch.tensor([0, 4, 0, 1]))
    assert torch.allclose(product, torch.cat([rows[:4] @ weights[1].T, rows[4:] @ weights[3].T]))
    assert grouped_linear(rows[:0], weights, torch.tensor([0, 0, 0, 0])).shape == (0, 3)


def test_experts_multiply_in_the_type_of_autocast() -> None:
    rows = torch.randn(5, 8, requires_grad=True)
    weights, counts = torch.randn(4, 16, 8, requires_grad=True), torch.tensor([0, 4, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = grouped_linear(rows, weights, counts)
        wanted = torch.cat([rows[:4] @ weights[1].T, rows[4:] @ weights[3].T])
    assert product.dtype == torch.bfloat16
    assert torch.equal(product, wanted)
    ours, theirs = (torch.autograd.grad(each.float().square().sum(), [rows, weights]) for each in (product, wanted))
    assert all(torch.allclose(one, other, rtol=1e-2) for one, other in zip(ours, theirs, strict=True))


def test_pytorchs_grouped_product_is_the_same_where_it_may_be_used() -> None:
    rows, weights = torch.randn(5, 8).bfloat16(), torch.randn(4, 16, 8).bfloat16()
    counts = torch.tensor([0, 4, 0, 1])
    assert is_grouped(rows, weights)
    grouped = F.grouped_mm(rows, weights.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    assert torch.allclose(grouped, grouped_linear(rows, weights, counts), rtol=1e-2)
    assert not is_grouped(rows.float(), weights)
    assert not is_grouped(rows[:, :4], weights[:, :, :4])


def test_router_losses_and_loads_are_what_their_papers_say() -> None:
    settings = ExpertsConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, dense_layers=(0,))
    model = build(msgspec.structs.replace(BASE, mlp="moe", experts=settings))
    assert model.router_losses() == {}
    model(torch.randint(0, 61, (30,)), positions_of((30,)), ForwardContext.for_sequences((30,)))
    balances, squares = [], []
    for layer in list(model.layers)[1:]:
        routing = layer.mlp.routing
        probabilities = routing.logits.softmax(-1)
        counts = [sum(expert in row for row in routing.chosen.tolist()) for expert in range(4)]
        balances.append(
            4 * sum(count / 30 * float(probabilities[:, e].mean().detach()) for e, count in enumerate(counts))
        )
        squares.append(float(torch.log(torch.exp(routing.logits).sum(-1)).square().mean().detach()))
    losses = model.router_losses()
    assert float(losses["load_balancing"].detach()) == pytest.approx(sum(balances) / 2, rel=1e-5)
    assert float(losses["router_z"].detach()) == pytest.approx(sum(squares) / 2, rel=1e-5)
    loads = model.expert_loads()
    assert loads.shape == (2, 4)
    assert loads.sum(1).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("feed_forward", FEED_FORWARD)
def test_gradient_checkpointing_changes_no_gradient(feed_forward: str) -> None:
    config = msgspec.structs.replace(BASE, **FEED_FORWARD[feed_forward], dropout=0.2, sliding_window=4)
    model = build(config).train()
    token_ids, lengths = torch.randint(0, 61, (18,)), (11, 7)

    def gradients(recompute: bool) -> list[Tensor]:
        model.gradient_checkpointing = recompute
        torch.manual_seed(11)
        logits = model(token_ids, positions_of(lengths), ForwardContext.for_sequences(lengths))
        loss = logits.logsumexp(-1).sum() + sum(model.router_losses().values())
        return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))

    kept, recomputed = gradients(False), gradients(True)
    for one, other in zip(kept, recomputed, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_dropout_is_for_training_only() -> None:
    model = build(msgspec.structs.replace(BASE, dropout=0.3, attention_dropout=0.3))
    token_ids = torch.randint(0, 61, (12,))
    whole = (token_ids, positions_of((12,)), ForwardContext.for_sequences((12,)))
    assert torch.equal(model(*whole), model(*whole))
    model.train()
    assert not torch.equal(model(*whole), model(*whole))


def test_long_contexts_take_memory_for_what_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    length, window = 3000, 64
    masks: list[int] = []
    real = attend_module.attend_masked

    def watched(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: AttentionRule) -> Tensor:
        masks.append(mask.numel())
        return real(query, key, value, mask, rule)

    monkeypatch.setattr(attend_module, "attend_masked", watched)
    parts = [torch.randn(length, 1, 8) for _ in range(3)]
    attend(*parts, (length,), AttentionRule(0.3, window=window))
    assert max(masks) <= attend_module.QUERY_BLOCK * (attend_module.QUERY_BLOCK + window)
