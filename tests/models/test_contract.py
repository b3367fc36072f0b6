"""What timm, torch and a careful user expect of every registered variant, each shrunk to a few thousand parameters."""

import copy
import pickle
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchconvnet import Output, PatchConvNet, UserError, with_attention_pooling
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.models.cost import multiply_accumulates
from patchconvnet.models.stem import PooledStem

VARIANTS = timm.list_models("patchconvnet*")
K = 5

# parameters with the default number of classes; the paper's are those of its public code
PARAMETERS = {
    "patchconvnet_s60": 25_231_096,
    "patchconvnet_s120": 47_723_896,
    "patchconvnet_b60": 99_388_936,
    "patchconvnet_b120": 188_611_336,
    "patchconvnet_l60": 176_009_576,
    "patchconvnet_l120": 334_294_376,
    "patchconvnet_s60_multi": 25_614_712,
    "patchconvnet_keras": 2_174_986,
}


def tiny(variant: str, **options: object) -> PatchConvNet:
    """The variant at 16 channels and depth 3, with no parameter left at a special value such as zero."""
    torch.manual_seed(0)
    model = timm.create_model(variant, **{"embed_dim": 16, "depth": 3, "num_classes": K, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


# shrunk, the paper's sizes are one network, and so are our own: compiling takes seconds, so each comes once there
DISTINCT = list({tiny(variant, layer_scale=1.0).config: variant for variant in VARIANTS}.values())


def make_image(model: nn.Module, batch: int = 2, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.in_chans, height, width, generator=generator)


def grid(model: PatchConvNet, height: int, width: int) -> tuple[int, int]:
    return -(-height // model.patch_size), -(-width // model.patch_size)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_variants_are_all_here() -> None:
    assert set(PARAMETERS) <= set(VARIANTS)
    assert len(VARIANTS) >= 11


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts(variant: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[variant]


# Options


@pytest.mark.parametrize("variant", VARIANTS)
def test_options(variant: str) -> None:
    model = tiny(variant, num_classes=3, in_chans=1, drop_path_rate=0.3, drop_rate=0.1)
    assert (model.num_classes, model.in_chans) == (3, 1)
    assert model(make_image(model)).shape == (2, 3)
    assert {block.drop_path.drop_prob for block in model.trunk} == {0.3}  # the same in every block
    bare = tiny(variant, num_classes=0)
    image = make_image(bare)
    assert bare(image).shape == (2, model.num_features)
    close(bare(image, return_attention=True).logits, bare(image))
    with pytest.raises(UserError, match="unknown option 'img_sizes'"):
        tiny(variant, img_sizes=3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_and_drop_path_act_in_training_only(variant: str) -> None:
    model = tiny(variant, drop_path_rate=0.5, norm="layer", layer_scale=1.0)
    image = make_image(model)
    assert torch.equal(model(image), model(image))
    model.train()
    assert not torch.equal(model(image), model(image))


@pytest.mark.parametrize("divisors", [(8, 4, 2), (), (0, 1), 4, (2.0, 1)])
def test_stem_divisors_are_checked(divisors: object) -> None:
    with pytest.raises(UserError, match="stem_divisors must"):
        PatchConvNet(stem_divisors=divisors)


def test_a_layer_scale_of_zero_is_none_by_timm_too() -> None:
    model = timm.create_model("patchconvnet_s60", depth=1, embed_dim=32, layer_scale=0)
    assert model.config.layer_scale is None
    assert not [name for name, _ in model.trunk.named_parameters() if "gamma" in name]


def test_preprocessing_has_the_networks_channels() -> None:
    grey = tiny("patchconvnet_s60", in_chans=1)
    preprocessing = preprocessing_of(grey)
    assert preprocessing.channels == 1
    assert preprocessing.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert grey(preprocessing(Image.new("RGB", (64, 48)))[None]).shape == (1, grey.num_classes)
    features = tiny("patchconvnet_s60", in_chans=1, features_only=True)
    assert features.pretrained_cfg["input_size"] == features.model.pretrained_cfg["input_size"] == (1, 224, 224)


# Sizes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (128, 32), (33, 47), (16, 17)])
def test_any_size_in_evaluation_and_training(variant: str, height: int, width: int) -> None:
    model = tiny(variant)
    h, w = grid(model, height, width)
    for batch in (1, 2):
        image = make_image(model, batch, height, width)
        assert model.eval()(image).shape == (batch, K)
        output = model.train()(image, return_attention=True)
        assert output.logits.shape == (batch, K)
        assert output.attention.shape == (batch, K if model.class_wise else 1, h, w)
        output.logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_impossible_images_are_refused_in_words(variant: str) -> None:
    model = tiny(variant)
    p = model.patch_size
    with pytest.raises(UserError, match=rf"an image of {p - 1}×40 pixels is smaller than one patch \({p}×{p}\)"):
        model(torch.zeros(1, 3, p - 1, 40))
    with pytest.raises(UserError, match=r"expected images of shape \(B, 3, H, W\), got \(1, 1, 40, 40\)"):
        model.forward_features(torch.zeros(1, 1, 40, 40))
    with pytest.raises(UserError, match=r"got \(3, 40, 40\)"):
        model.forward_intermediates(torch.zeros(3, 40, 40))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_image_does_not_depend_on_its_neighbours_in_the_batch(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model, 3)
    close(model(image), torch.cat([model(image[i : i + 1]) for i in range(3)]))


# What comes out


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_is_a_share_of_one_and_comes_with_the_same_logits(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model)
    output = model(image, return_attention=True)
    assert isinstance(output, Output)
    assert output.evidence is None
    assert torch.equal(output.logits, model(image))
    total = output.attention.sum((2, 3))
    assert (output.attention >= 0).all()
    assert (total <= 1 + 1e-5).all()
    keeps_a_share = model.config.pooling in ("keras", "class_attention")  # the class token attends to itself
    assert ((total < 1 - 1e-4) == keeps_a_share).all()


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "additive_sliced", "average"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_evidence_sums_to_the_logit_less_its_bias(pooling: str, norm: str) -> None:
    model = tiny("patchconvnet_mini", pooling=pooling, norm=norm)
    for image in (make_image(model), make_image(model, 1, 33, 47)):
        output = model(image, return_evidence=True)
        assert output.evidence.shape == (len(image), K, *grid(model, *image.shape[2:]))
        total = output.evidence.sum((2, 3))
        scale = output.evidence.abs().sum((2, 3))
        assert ((total - (output.logits - model.head.bias)).abs() < 1e-4 * scale).all()
        close(output.logits, model(image))


@pytest.mark.parametrize("variant", VARIANTS)
def test_evidence_is_refused_where_it_would_not_be_exact(variant: str) -> None:
    model = tiny(variant)
    if model.config.pooling != "additive":
        with pytest.raises(UserError, match="evidence is exact only for additive poolings"):
            model(make_image(model), return_evidence=True)
    with pytest.raises(UserError, match="0 classes"):
        tiny(variant, num_classes=0, pooling="additive")(make_image(model), return_evidence=True)


# timm's contract


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_is_features_and_head(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model)
    features = model.forward_features(image)
    assert features.shape == (2, model.num_features, *grid(model, 48, 64))
    assert features.is_contiguous(memory_format=torch.channels_last)
    vector = model.forward_head(features, pre_logits=True)
    assert vector.shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(image))
    if not model.class_wise:
        close(model.get_classifier()(vector), model(image))


@pytest.mark.parametrize("variant", VARIANTS)
def test_reset_classifier(variant: str) -> None:
    model = tiny(variant).train()
    image = make_image(model)
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_classes == 7
    assert model.training
    assert all(module.training for module in model.modules())
    assert model(image, return_attention=True).attention.shape[1] == (7 if model.class_wise else 1)
    assert model.get_classifier() is model.head
    assert model.eval()(image).shape == (2, 7)
    model.reset_classifier(0)
    assert model(image).shape == (2, model.num_features)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(4, "class_attention_multi")
    assert model(image, return_attention=True).attention.shape[1] == 4
    model.reset_classifier(3, "avg")
    assert model(image).shape == (2, 3)
    model.reset_classifier(0, "")
    assert torch.equal(model(image), model.forward_features(image))
    with pytest.raises(UserError, match="unknown pooling 'max'"):
        model.reset_classifier(3, "max")
    with pytest.raises(UserError, match="no pooling"):
        model(image, return_attention=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reset_classifier_keeps_the_rest_and_the_dtype(variant: str) -> None:
    model = tiny(variant).double()
    before = copy.deepcopy(model.state_dict())
    model.reset_classifier(9)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        if not model.class_wise and not name.startswith("head"):
            assert torch.equal(value, before[name])
    model.reset_classifier(0)
    model.reset_classifier(9)
    assert model(make_image(model).double()).dtype == torch.float64


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_only(variant: str) -> None:
    whole = tiny(variant)
    image = make_image(whole)
    default = tiny(variant, features_only=True, depth=8)
    assert default.feature_info.out_indices == (2, 4, 6, 7)
    assert default.feature_info.channels() == [16] * 4
    assert default.feature_info.reduction() == [whole.patch_size] * 4
    model = tiny(variant, features_only=True, out_indices=(0, -1))
    model.model.load_state_dict(whole.state_dict(), strict=False)
    features = model(image)
    assert [tuple(f.shape) for f in features] == [(2, 16, *grid(whole, 48, 64))] * 2
    assert torch.equal(features[-1], whole.forward_features(image))


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_intermediates(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model)
    final, features = model.forward_intermediates(image)
    assert len(features) == len(model.trunk)
    assert torch.equal(final, model.forward_features(image))
    assert torch.equal(features[-1], final)
    _, (last,) = model.forward_intermediates(image, indices=1)
    assert torch.equal(last, final)
    only = model.forward_intermediates(image, indices=[0, 1], intermediates_only=True, stop_early=True)
    assert all(torch.equal(a, b) for a, b in zip(only, features[:2], strict=True))
    early, _ = model.forward_intermediates(image, indices=[0], stop_early=True)
    assert torch.equal(early, features[0])
    _, nhwc = model.forward_intermediates(image, output_fmt="NHWC")
    assert all(torch.equal(a.permute(0, 3, 1, 2), b) for a, b in zip(nhwc, features, strict=True))
    with pytest.raises(UserError, match="'NCHW' or 'NHWC', not 'NLC'"):
        model.forward_intermediates(image, output_fmt="NLC")


@pytest.mark.parametrize("variant", VARIANTS)
def test_prune_intermediate_layers(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model)
    expected = model.forward_intermediates(image, intermediates_only=True)[1]
    classifier = copy.deepcopy(model)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert torch.equal(model(image), expected)
    assert model.config.depth == len(model.trunk) == len(model.feature_info) == 2
    classifier.prune_intermediate_layers([1], prune_head=False)
    assert classifier(image).shape == (2, K)


@pytest.mark.parametrize("pointwise", [False, True], ids=["blocks", "pointwise"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_gives_the_same_gradients(variant: str, pointwise: bool) -> None:
    """And the same statistics of batch norms, which see the images a second time in the backward pass."""
    model = tiny(variant).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    image, labels = make_image(model), torch.tensor([0, 3])
    gradients, buffers = [], []
    before = copy.deepcopy(model.state_dict())
    for enabled in (False, True):
        model.load_state_dict(before)
        model.set_grad_checkpointing(enabled, pointwise=pointwise)
        model.zero_grad()
        F.cross_entropy(model(image), labels).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        buffers.append([buffer.clone() for buffer in model.buffers()])
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 1e-6)
    for ours, theirs in zip(*buffers, strict=True):
        assert torch.equal(ours, theirs)


class Counted(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["patchconvnet_s60", "patchconvnet_midi"])
def test_pointwise_recomputing_repeats_no_product(variant: str) -> None:
    model = tiny(variant).train()
    again = {}
    for pointwise in (False, True):
        model.set_grad_checkpointing(pointwise=pointwise)
        loss = model(make_image(model)).sum()
        with Counted() as counted:
            loss.backward()
        again[pointwise] = counted.calls
    assert again[True]["gelu"] == again[False]["gelu"] > 0
    assert again[False]["convolution"] > 0
    assert again[True]["convolution"] == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_groups(variant: str) -> None:
    model = tiny(variant)
    names = dict(model.named_parameters())
    assert model.no_weight_decay() <= set(names)
    assert {name for name in names if name.endswith(("class_token", "query"))} == model.no_weight_decay()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == set(names)
    order = [layers["stem.convs.0.weight"], *(layers[f"trunk.{i}.conv1.weight"] for i in range(3))]
    assert order == [0, 1, 2, 3]
    assert layers["head.weight"] == max(layers.values()) >= 4
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(names)
    for name, parameter in names.items():
        decays = parameter.ndim > 1 and name not in model.no_weight_decay()
        assert groups[id(parameter)]["weight_decay"] == (0.05 if decays else 0.0), name
    assert groups[id(names["stem.convs.0.weight"])]["lr_scale"] < groups[id(names["head.weight"])]["lr_scale"]


# State


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_and_copies(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model)
    expected = model(image)
    other = timm.create_model(variant, embed_dim=16, depth=3, num_classes=K).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image), expected)
    assert torch.equal(copy.deepcopy(model)(image), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(image), expected)


# torch


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast(variant: str) -> None:
    model = tiny(variant)
    image = make_image(model)
    expected = model(image, return_attention=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image, return_attention=True)
        loss = F.cross_entropy(model.train()(image), torch.tensor([0, 3]))
    loss.backward()
    scale = expected.logits.abs().max()
    assert (output.logits.float() - expected.logits).abs().max() < 0.05 * scale
    assert (output.attention.float() - expected.attention).abs().max() < 0.05 * expected.attention.max()


SEVERAL = {"num_heads": 4, "depth_token_only": 2}
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
COMPILED = [*((variant, {}) for variant in DISTINCT), *((f"patchconvnet_s60{m}", SEVERAL) for m in ("", "_multi"))]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "options"), COMPILED)
def test_compile(variant: str, options: dict[str, int]) -> None:
    model = tiny(variant, **options)
    image = make_image(model)
    gradients = []
    torch.compiler.reset()
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        output = call(image, return_attention=True)
        output.logits.square().sum().backward()
        gradients.append([output.logits, output.attention, *(parameter.grad for parameter in model.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["patchconvnet_s60", "patchconvnet_midi"])  # layer norm, batch norm
def test_compile_with_inductor(variant: str) -> None:
    """Forward and backward of unknown sizes, where torch 2.14 stops at kept views (see `BatchNorm`)."""
    model = tiny(variant, depth=1).train()
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=True)
    for image in (make_image(model), make_image(model, 3, 33, 47)):
        gradients = []
        for call in (model, compiled):
            model.zero_grad()
            logits = call(image)
            logits.square().sum().backward()
            gradients.append([logits, *(parameter.grad for parameter in model.parameters())])
        for ours, theirs in zip(*gradients, strict=True):
            close(ours, theirs)


class WithAttention(nn.Module):
    def __init__(self, model: PatchConvNet):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(image, return_attention=True)[:2]


@pytest.mark.parametrize(("variant", "options"), COMPILED)
def test_export_with_dynamic_batch_height_and_width(variant: str, options: dict[str, int]) -> None:
    model = tiny(variant, **options)
    if isinstance(model.stem, PooledStem) and TORCH < (2, 14):
        pytest.skip("torch before 2.14 exports a max pool that rounds up for sizes of one remainder only")
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        WithAttention(model), (make_image(model),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    ).module()
    # torch.export takes a dynamic length for at least 2, and so the grid: images must be wider than one patch
    for shape in ((2, 48, 64), (1, 48, 48), (3, 128, 32), (1, 33, 47), (2, 224, 32)):
        image = make_image(model, *shape)
        logits, attention = program(image)
        expected = model(image, return_attention=True)
        close(logits, expected.logits)
        close(attention, expected.attention)


# Heads and blocks of the class attention


def test_heads_and_blocks_come_back_from_a_model_folder(tmp_path: Path) -> None:
    model = tiny("patchconvnet_s60", **SEVERAL)
    loaded = PatchConvNet.from_pretrained(model.save_pretrained(tmp_path))
    assert (loaded.config.num_heads, loaded.config.depth_token_only) == (4, 2)
    assert torch.equal(loaded(make_image(model)), model(make_image(model)))
    otherwise = PatchConvNet.from_pretrained(tmp_path, num_heads=2)  # the same shapes: only the config can tell
    assert not torch.allclose(otherwise(make_image(model)), model(make_image(model)), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 5}, "embed_dim 16 must be a multiple of num_heads, 5"),
        ({"num_heads": 0}, "num_heads must be a whole number from 1"),
        ({"depth_token_only": 0}, "depth_token_only must be a whole number from 1"),
        ({"num_heads": 4, "pooling": "additive"}, "are of the class attention; pooling 'additive' has 1 of each"),
        ({"depth_token_only": 2, "pooling": "keras"}, "are of the class attention; pooling 'keras' has 1 of each"),
    ],
)
def test_heads_and_blocks_that_cannot_be_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny("patchconvnet_s60", **options)


def test_another_pooling_forgets_heads_and_blocks() -> None:
    model = tiny("patchconvnet_s60", **SEVERAL)
    model.reset_classifier(3)
    assert model.pooling.attn.num_heads == 4
    model.reset_classifier(3, "avg")
    assert (model.config.num_heads, model.config.depth_token_only) == (1, 1)
    assert model(make_image(model)).shape == (2, 3)


@pytest.mark.parametrize("options", [{}, SEVERAL], ids=str)
def test_their_cost_is_counted(options: dict[str, int]) -> None:
    """What keys and values for every patch would cost, against the counter's own count of that computation."""
    model = PatchConvNet(embed_dim=16, depth=1, num_classes=K, **options).eval()
    cost = multiply_accumulates(model, 64, 96)
    blocks, patches, c = model.config.depth_token_only, 24, 16
    attention = 2 * c * c + 2 * (patches + 1) * c * c + 2 * (patches + 1) * c  # q, proj; k, v; scores, sum
    rest = cost.published - blocks * attention
    mlp = blocks * 2 * 3 * c * c
    trunk = PatchConvNet(embed_dim=16, depth=1, num_classes=0, pooling="none").eval()
    assert rest == multiply_accumulates(trunk, 64, 96).ours + mlp + c * K


# What a network says of itself


def test_class_names_are_its_own_or_numbers() -> None:
    model = tiny("patchconvnet_mini")
    assert model.class_names == [f"class {k}" for k in range(K)]
    model.metadata.class_names = [f"kind {k}" for k in range(K)]
    assert model.class_names == [f"kind {k}" for k in range(K)]
    model.metadata.class_names = ["one"]
    with pytest.raises(UserError, match=rf"has {K} classes and 1 class names; set `model\.metadata\.class_names`"):
        _ = model.class_names


@pytest.mark.parametrize("name", ["patchconvnet_s60.fb_in21k_ft_in1k_384", "resnet18.a1_in1k", "mobilenetv3_small_100"])
def test_its_preprocessing_is_what_timm_has_registered(name: str) -> None:
    """The network's own plain words, against timm's reading of the same `pretrained_cfg`."""
    model = timm.create_model(name) if name.startswith("patchconvnet") else with_attention_pooling(name)
    expected = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    ours = Preprocessing.from_dict(model.preprocessing)
    assert ours == Preprocessing.from_pretrained_cfg(model.pretrained_cfg) == preprocessing_of(model)
    assert (ours.size, ours.mean, ours.std) == (expected["input_size"][1:], expected["mean"], expected["std"])
    assert (ours.crop_ratio, ours.interpolation) == (expected["crop_pct"], expected["interpolation"])
    model.metadata.preprocessing = {"size": [40, 48]}
    assert preprocessing_of(model).size == (40, 48)
