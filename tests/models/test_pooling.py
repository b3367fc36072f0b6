"""Pooling heads against second implementations that make every query, key and value, and against their invariants."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models.pooling import (
    MAX_FOLDED_QUERIES,
    AdditivePooling,
    AveragePooling,
    ClassAttention,
    ClassAttentionPooling,
    ClassWiseLinear,
    KerasPooling,
    SlicedPooling,
)

DIM = 12
QUERIES = [1, 2, MAX_FOLDED_QUERIES, MAX_FOLDED_QUERIES + 1]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter gets a value of order one: queries and layer scales of zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def explicit_attention(attn: ClassAttention, tokens: Tensor, patches: Tensor, attend_self: bool) -> Tensor:
    """Queries from the class tokens (Q, C), keys and values from all tokens (B, N, C), as the paper's code has it."""
    batched = tokens.expand(len(patches), -1, -1)
    everything = torch.cat([batched, patches], 1) if attend_self else patches
    q, k, v = attn.q(batched), attn.k(everything), attn.v(everything)
    return attn.proj(F.scaled_dot_product_attention(q, k, v))


def published_attention(
    attn: ClassAttention, tokens: Tensor, patches: Tensor, attend_self: bool
) -> tuple[Tensor, Tensor]:
    """The public code's formulas for several heads (facebookresearch/deit): output (B, Q, C), weights (B, H, Q, N)."""
    b, heads = len(patches), attn.num_heads
    everything = torch.cat([tokens, patches], 1) if attend_self else patches
    c = patches.shape[2]
    q = attn.q(tokens).reshape(b, -1, heads, c // heads).permute(0, 2, 1, 3) * (c // heads) ** -0.5
    k = attn.k(everything).reshape(b, -1, heads, c // heads).permute(0, 2, 1, 3)
    v = attn.v(everything).reshape(b, -1, heads, c // heads).permute(0, 2, 1, 3)
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    out = attn.proj((weights @ v).transpose(1, 2).reshape(b, -1, c))
    return out, weights[..., -patches.shape[1] :]


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = draw(*output.shape, seed=9).to(output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


# ClassAttention


@pytest.mark.parametrize(("queries", "attend_self"), [(1, True), *((queries, False) for queries in QUERIES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_changes_neither_the_output_nor_a_gradient(queries: int, attend_self: bool, dtype: torch.dtype) -> None:
    attn = randomise(ClassAttention(DIM, queries)).to(dtype)
    assert attn.folded == (queries <= MAX_FOLDED_QUERIES)
    tokens, patches = (value.to(dtype).requires_grad_() for value in (draw(queries, DIM), draw(3, 20, DIM, seed=2)))
    inputs = [tokens, patches, *attn.parameters()]
    ours, weights = attn(tokens, patches, attend_self)
    theirs = explicit_attention(attn, tokens, patches, attend_self)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    for our_gradient, their_gradient in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        scale = max(their_gradient.abs().max().item(), 1)
        assert (our_gradient - their_gradient).abs().max() < 10 * tolerance * scale
    assert weights.shape == (3, 1, queries, 20)


@pytest.mark.parametrize("attend_self", [True, False])
def test_attention_weights_are_those_of_torchs_multihead_attention(attend_self: bool) -> None:
    attn = randomise(ClassAttention(DIM))
    theirs = nn.MultiheadAttention(DIM, num_heads=1, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attn.q.bias, attn.k.bias, attn.v.bias]))
        theirs.out_proj.load_state_dict(attn.proj.state_dict())
    tokens, patches = draw(1, DIM), draw(3, 20, DIM, seed=2)
    query = tokens.expand(3, -1, -1)
    everything = torch.cat([query, patches], 1) if attend_self else patches
    expected, expected_weights = theirs(query, everything, everything)
    output, weights = attn(tokens, patches, attend_self)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights[:, 0], expected_weights[..., int(attend_self) :], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(("queries", "attend_self"), [(1, True), (1, False), (3, False), (MAX_FOLDED_QUERIES, False)])
@pytest.mark.parametrize("heads", [2, 3, 12])
def test_several_heads_are_the_published_formulas_with_every_gradient(
    heads: int, queries: int, attend_self: bool, per_image: bool
) -> None:
    attn = randomise(ClassAttention(DIM, queries, heads)).double()
    assert attn.folded == (queries * heads <= MAX_FOLDED_QUERIES)
    tokens = draw(*((3,) if per_image else ()), queries, DIM).double().requires_grad_()
    patches = draw(3, 20, DIM, seed=2).double().requires_grad_()
    ours, our_weights = attn(tokens, patches, attend_self)
    theirs, their_weights = published_attention(attn, tokens.expand(3, -1, -1), patches, attend_self)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(our_weights, their_weights, atol=1e-12, rtol=1e-12)
    inputs = [tokens, patches, *attn.parameters()]
    for our_gradient, their_gradient in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, atol=1e-10, rtol=1e-10)


def test_several_heads_are_torchs_multihead_attention() -> None:
    attn = randomise(ClassAttention(DIM, 1, 4))
    theirs = nn.MultiheadAttention(DIM, num_heads=4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attn.q.bias, attn.k.bias, attn.v.bias]))
        theirs.out_proj.load_state_dict(attn.proj.state_dict())
    tokens, patches = draw(1, DIM), draw(3, 20, DIM, seed=2)
    everything = torch.cat([tokens.expand(3, -1, -1), patches], 1)
    expected, expected_weights = theirs(everything[:, :1], everything, everything, average_attn_weights=False)
    output, weights = attn(tokens, patches, attend_self=True)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights, expected_weights[..., 1:], atol=1e-6, rtol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UserError, match="12 channels cannot be divided among 5 heads"):
        ClassAttention(DIM, 1, 5)


@pytest.mark.parametrize("queries", [1, MAX_FOLDED_QUERIES + 1])
def test_dropout_on_the_weights_keeps_their_mean(queries: int) -> None:
    attn = randomise(ClassAttention(DIM, queries, drop=0.3))
    tokens, patches = draw(queries, DIM), draw(1, 6, DIM, seed=2)
    expected, _ = attn(tokens, patches, attend_self=False)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = attn.train()(tokens, patches.expand(20_000, -1, -1), attend_self=False)[0]
    error = outputs.std(0) / len(outputs) ** 0.5  # of the mean
    assert ((outputs.mean(0) - expected[0]).abs() < 5 * error + 1e-4).all()
    assert outputs.std(0).min() > 0


# The heads


def explicit_class_attention_pooling(head: ClassAttentionPooling, patches: Tensor) -> Tensor:
    x, tokens = patches.flatten(1, 2), head.class_token[0]
    attended = explicit_attention(head.attn, head.norm1(tokens), head.norm1(x), not head.class_wise)
    x = tokens + head.layer_scale1.gamma * attended
    x = x + head.layer_scale2.gamma * head.mlp.fc2(F.gelu(head.mlp.fc1(head.norm2(x))))
    return head.norm(x) if head.class_wise else head.norm(x)[:, 0]


def explicit_keras_pooling(head: KerasPooling, patches: Tensor) -> Tensor:
    x, tokens = patches.flatten(1, 2), head.class_token[0]
    attended = explicit_attention(head.attn, head.norm1(tokens), head.norm1(x), attend_self=True)
    x = head.norm3(head.norm2(tokens + attended))
    x = x + F.gelu(head.mlp.fc2(F.gelu(head.mlp.fc1(x), approximate="tanh")), approximate="tanh")
    return x[:, 0]


@pytest.mark.parametrize(
    ("head", "explicit"),
    [
        (ClassAttentionPooling(DIM), explicit_class_attention_pooling),
        (ClassAttentionPooling(DIM, 5), explicit_class_attention_pooling),
        (ClassAttentionPooling(DIM, MAX_FOLDED_QUERIES + 1), explicit_class_attention_pooling),
        (KerasPooling(DIM), explicit_keras_pooling),
    ],
    ids=["single", "multi", "many", "keras"],
)
def test_class_attention_heads_step_by_step(head: nn.Module, explicit: object) -> None:
    randomise(head).double()
    patches = draw(3, 4, 5, DIM).double().requires_grad_()
    inputs = [patches, *head.parameters()]
    ours, theirs = head(patches).vector, explicit(head, patches)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)
    for our_gradient, their_gradient in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, atol=1e-10, rtol=1e-10)


def published_pooling(head: ClassAttentionPooling, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Blocks of class attention one after the other, as in the public code: class tokens, and every block's weights."""
    x = patches.flatten(1, 2)
    c, maps = head.class_token.expand(len(x), -1, -1), []
    for layers in (head, *(SimpleNamespace(**block) for block in head.further.values())):
        normalised = layers.norm1(torch.cat([c, x], 1))
        count = c.shape[1]
        attended, weights = published_attention(
            layers.attn, normalised[:, :count], normalised[:, count:], not head.class_wise
        )
        c = c + layers.layer_scale1.gamma * attended
        c = c + layers.layer_scale2.gamma * layers.mlp.fc2(F.gelu(layers.mlp.fc1(layers.norm2(c))))
        maps.append(weights)
    return head.norm(torch.cat([c, x], 1))[:, : c.shape[1]], maps


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(("heads", "depth"), [(1, 2), (3, 1), (4, 3)])
def test_blocks_and_heads_as_the_public_code_has_them(heads: int, depth: int, classes: int | None) -> None:
    head = randomise(ClassAttentionPooling(DIM, classes, num_heads=heads, depth=depth)).double()
    patches = draw(2, 4, 5, DIM).double().requires_grad_()
    pooled = head(patches)
    expected, maps = published_pooling(head, patches)
    vector = pooled.vector if classes else pooled.vector[:, None]
    torch.testing.assert_close(vector, expected, atol=1e-11, rtol=1e-11)
    mean = torch.stack([weights.mean(1) for weights in maps]).mean(0)  # over heads, then over blocks
    torch.testing.assert_close(pooled.attention.flatten(2), mean, atol=1e-12, rtol=1e-12)
    inputs = [patches, *head.parameters()]
    for ours, theirs in zip(gradients(vector, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


HEADS = {
    "class_attention": ClassAttentionPooling(DIM),
    "class_attention_multi": ClassAttentionPooling(DIM, 3),
    "class_attention_heads": ClassAttentionPooling(DIM, num_heads=3, depth=2),
    "class_attention_multi_heads": ClassAttentionPooling(DIM, 3, num_heads=4),
    "keras": KerasPooling(DIM),
    "additive": AdditivePooling(DIM),
    "additive_multi": AdditivePooling(DIM, 3),
    "additive_batch": AdditivePooling(DIM, norm="batch"),
    "additive_sliced": SlicedPooling(DIM, 4),
    "average": AveragePooling(DIM),
}


@pytest.mark.parametrize("name", HEADS)
def test_all_heads_share_one_interface(name: str) -> None:
    head = randomise(HEADS[name])
    for h, w in ((4, 5), (1, 7), (1, 1)):
        pooled = head(draw(2, h, w, DIM))
        queries = 3 if head.class_wise else 1
        assert pooled.vector.shape == ((2, 3, DIM) if head.class_wise else (2, DIM))
        assert pooled.attention.shape == (2, queries, h, w)
        assert (pooled.attention >= 0).all()
        assert (pooled.attention.sum((2, 3)) < 1 + 1e-5).all()
        if pooled.values is not None:
            total = torch.einsum("bqhw,bhwc->bqc", pooled.attention, pooled.values)
            torch.testing.assert_close(total.reshape(pooled.vector.shape), pooled.vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_patches_have_no_place_of_their_own(name: str) -> None:
    head = randomise(HEADS[name])
    patches = draw(2, 4, 5, DIM)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = patches.flatten(1, 2)[:, order].unflatten(1, (4, 5))
    before, after = head(patches), head(shuffled)
    torch.testing.assert_close(after.vector, before.vector, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.attention.flatten(2), before.attention.flatten(2)[..., order])


# Additive pooling


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_additive_pooling_starts_as_average_pooling(norm: str) -> None:
    additive, average = AdditivePooling(DIM, norm=norm), AveragePooling(DIM, norm=norm)
    patches = draw(2, 4, 5, DIM)
    for mode in (True, False):
        ours, theirs = additive.train(mode)(patches), average.train(mode)(patches)
        torch.testing.assert_close(ours.vector, theirs.vector)
        torch.testing.assert_close(ours.attention, theirs.attention)


def test_each_query_of_a_sliced_pooling_pools_its_slice_as_an_additive_pooling_would() -> None:
    sliced = randomise(SlicedPooling(DIM, 4))
    patches = draw(2, 4, 5, DIM)
    pooled, maps = sliced(patches), []
    for q, query in enumerate(sliced.query):
        alone = AdditivePooling(DIM)
        alone.load_state_dict({**sliced.state_dict(), "query": query[None]})
        theirs = alone(patches)
        part = slice(q * DIM // 4, (q + 1) * DIM // 4)
        torch.testing.assert_close(pooled.vector[:, part], theirs.vector[:, part])
        maps.append(theirs.attention)
    torch.testing.assert_close(pooled.attention, torch.stack(maps).mean(0))


def test_slices_must_be_equal() -> None:
    with pytest.raises(UserError, match=f"{DIM} channels can't be cut into 5 equal slices"):
        SlicedPooling(DIM, 5)


def test_a_key_and_a_value_projection_would_add_nothing_to_additive_pooling() -> None:
    head, classifier = randomise(AdditivePooling(DIM)).double(), randomise(nn.Linear(DIM, 4)).double()
    keys, values = (draw(DIM, DIM, seed=seed).double() for seed in (3, 4))
    query, patches = draw(DIM, seed=5).double(), draw(2, 4, 5, DIM).double()
    tokens = head.norm(patches).flatten(1, 2)
    weights = ((tokens @ keys.mT) @ query / DIM**0.5).softmax(-1)
    expected = classifier(torch.einsum("bn,bnc->bc", weights, tokens @ values.mT))
    with torch.no_grad():
        head.query.copy_((query @ keys)[None])
        classifier.weight.copy_(classifier.weight @ values)
    torch.testing.assert_close(classifier(head(patches).vector), expected)


def test_equal_queries_make_additive_multi_the_single_one() -> None:
    single, multi = randomise(AdditivePooling(DIM)), randomise(AdditivePooling(DIM, 3))
    linear, class_wise = randomise(nn.Linear(DIM, 3)), ClassWiseLinear(DIM, 3)
    multi.load_state_dict({**single.state_dict(), "query": single.query.expand(3, -1)})
    class_wise.load_state_dict(linear.state_dict())
    patches = draw(2, 4, 5, DIM)
    torch.testing.assert_close(class_wise(multi(patches).vector), linear(single(patches).vector))
    torch.testing.assert_close(multi(patches).attention, single(patches).attention.expand(-1, 3, -1, -1))


# The rest


def test_the_keras_head_starts_by_looking_everywhere_alike() -> None:
    model = timm.create_model("patchconvnet_keras", embed_dim=16).eval()
    pooled = model.pooling(draw(2, 4, 5, 16))
    token_weight = 1 - pooled.attention.sum((2, 3))
    torch.testing.assert_close(pooled.attention, torch.full((2, 1, 4, 5), 1 / 21))
    torch.testing.assert_close(token_weight, torch.full((2, 1), 1 / 21))


def test_class_wise_linear_is_a_linear_layer_per_class() -> None:
    head = randomise(ClassWiseLinear(DIM, 5))
    vectors = draw(3, 5, DIM)
    rows = [F.linear(vectors[:, k], head.weight[k : k + 1], head.bias[k : k + 1]) for k in range(5)]
    torch.testing.assert_close(head(vectors), torch.cat(rows, 1))
