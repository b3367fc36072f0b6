"""Fused networks against the networks that they were made from, and against what other people's code computed."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from patchconvnet import PatchConvNet, UserError, hardware
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.models import fused as fused_module
from patchconvnet.models.checkpoints import convert_keras, convert_official
from patchconvnet.models.fused import FusedLinear

FIXTURES = Path(__file__).parents[1] / "fixtures"
VARIANTS = timm.list_models("patchconvnet*")
K = 5


def trained(variant: str, **options: object) -> PatchConvNet:
    """The variant, small, with no weight and no running statistic at a special value."""
    torch.manual_seed(0)
    model = timm.create_model(variant, **{"embed_dim": 32, "depth": 3, "num_classes": K, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.3 / model.embed_dim**0.5) * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn_like(buffer)
            elif name.endswith("running_var"):
                buffer *= 1 + 0.5 * torch.rand_like(buffer)
    return model.eval()


def make_image(batch: int = 2, height: int = 48, width: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


# The same answers


@pytest.mark.parametrize("dim", [32, 256])  # from 256 channels on float32 takes oneDNN's linear layer
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_answers(variant: str, dim: int) -> None:
    model = trained(variant, embed_dim=dim)
    fused = model.fuse()
    for image in (make_image(), make_image(1), make_image(3, 33, 47), make_image(height=16, width=128)):
        with torch.inference_mode():
            ours, theirs = fused(image, return_attention=True), model(image, return_attention=True)
            close(ours.logits, theirs.logits)
            close(ours.attention, theirs.attention)
            close(fused(image), theirs.logits)
            close(fused.forward_features(image), model.forward_features(image), 1e-4)
            pre_logits = (m.forward_head(m.forward_features(image), pre_logits=True) for m in (fused, model))
            close(*pre_logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_in_double_precision(variant: str) -> None:
    """What float32 hides within its rounding would show here: the folding itself is exact."""
    model = trained(variant).double()
    image = make_image(dtype=torch.float64)
    with torch.inference_mode():
        close(model.fuse()(image), model(image), 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "class_attention_multi", "num_classes": 80},  # more queries than are folded
        {"pooling": "class_attention", "layer_scale": 0},
        {"num_heads": 4},
        {"num_heads": 4, "depth_token_only": 2},
        {"depth_token_only": 3},
        {"pooling": "class_attention_multi", "num_heads": 2, "depth_token_only": 2},
        {"pooling": "additive_multi", "norm": "batch"},
        {"pooling": "average", "act": "gelu_tanh"},
        {"pooling": "none"},
        {"num_classes": 0},
        {"conv": "dense", "act": "gelu_tanh", "stem_padding": "same", "stem_last_act": True, "stem_bias": True},
        {"se_bias": False, "se_ratio": 1 / 16},
        {"drop_path_rate": 0.5, "drop_rate": 0.5, "attn_drop_rate": 0.5},
    ],
    ids=str,
)
def test_same_answers_with_options(options: dict[str, object]) -> None:
    model = trained("patchconvnet_s60", **options)
    with torch.inference_mode():
        close(model.fuse()(make_image()), model(make_image()))


@pytest.mark.parametrize("name", ["single", "multi", "single_odd_res"])
def test_agrees_with_the_papers_code(name: str) -> None:
    golden = np.load(FIXTURES / f"golden_official_{name}.npz")
    variant = "patchconvnet_s60_multi" if name == "multi" else "patchconvnet_s60"
    model = timm.create_model(variant, embed_dim=48, depth=2, num_classes=7).eval()
    weights = {key[3:]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith("sd/")}
    model.load_state_dict(convert_official(weights))
    with torch.inference_mode():
        output = model.fuse()(torch.from_numpy(golden["input"]), return_attention=True)
    assert np.abs(output.logits.numpy() - golden["logits_f64"]).max() < 1e-5
    softmax = golden["act/attn_softmax_0"][..., 0 if name == "multi" else 1 :]
    assert np.abs(output.attention.numpy() - softmax.reshape(output.attention.shape)).max() < 1e-5


@pytest.mark.parametrize(("act", "prefix"), [("gelu_tanh", "ref64"), ("gelu", "erf64")])
def test_agrees_with_the_keras_example(act: str, prefix: str) -> None:
    golden = np.load(FIXTURES / "golden_seed.npz")
    model = timm.create_model("patchconvnet_keras", embed_dim=32, act=act).eval()
    model.load_state_dict(convert_keras({key[2:]: golden[key] for key in golden.files if key.startswith("w.")}))
    with torch.inference_mode():
        image = torch.from_numpy(golden["act.preprocessed"]).permute(0, 3, 1, 2)
        output = model.fuse()(image, return_attention=True)
    for ours, key in ((output.logits, "logits"), (output.attention, "attention_map")):
        theirs = golden[f"{prefix}.{key}"]
        assert np.abs(ours.numpy() - theirs.reshape(ours.shape)).max() < 1e-5


def test_evidence_and_what_explains() -> None:
    for variant in ("patchconvnet_mini", "patchconvnet_s60", "patchconvnet_keras", "patchconvnet_s60_multi"):
        model = trained(variant)
        ours, theirs = forward_with_maps(model.fuse(), make_image()), forward_with_maps(model, make_image())
        close(ours.evidence, theirs.evidence)
        close(ours.logits, theirs.logits)


# Number formats


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_answers_in_float32_and_close(variant: str) -> None:
    model = trained(variant, embed_dim=64)
    with torch.inference_mode():
        theirs = model(make_image(8), return_attention=True)
        ours = model.fuse(torch.bfloat16)(make_image(8), return_attention=True)
    assert ours.logits.dtype is ours.attention.dtype is torch.float32
    # bfloat16 keeps 8 bits, 0.4 %; some layers of them add up to a few times that
    assert (ours.logits - theirs.logits).norm() < 0.03 * theirs.logits.norm()
    close(ours.attention, theirs.attention, 0.03)


def test_auto_asks_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("patchconvnet_mini")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda has=has: has)
        assert model.fuse("auto").dtype is dtype
    assert model.fuse().dtype is torch.float32
    assert model.double().fuse().dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn_the_answers_are_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("patchconvnet_keras", embed_dim=256)
    with torch.inference_mode():
        with_onednn = model.fuse(dtype)(make_image())
        monkeypatch.setattr(fused_module, "_has_onednn", lambda weight: False)
        plain = model.fuse(dtype)
        assert not any(layer.packed for layer in plain.modules() if isinstance(layer, FusedLinear))
        close(with_onednn, plain(make_image()), 1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.slow
def test_a_cpu_with_avx2_only() -> None:
    """PyTorch's and oneDNN's kernels chosen as on an older CPU, in a process of its own."""
    program = (
        "import timm, torch, patchconvnet\n"
        "for name in ('patchconvnet_keras', 'patchconvnet_s60'):\n"
        "    model = timm.create_model(name, embed_dim=256, depth=2).eval()\n"
        "    x = torch.randn(2, 3, 48, 48)\n"
        "    with torch.inference_mode():\n"
        "        torch.testing.assert_close(model.fuse()(x), model(x), atol=1e-5, rtol=1e-5)\n"
    )
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **limits})


# What a fused network is, and what it refuses


def test_the_original_stays_as_it_is() -> None:
    model = trained("patchconvnet_s60")
    before = copy.deepcopy(model.state_dict())
    logits = model(make_image())
    fused = model.fuse("auto")
    with torch.no_grad():
        fused.head.weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(make_image()), logits)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_is_a_patchconvnet_in_evaluation_mode() -> None:
    model = trained("patchconvnet_mini")
    model.metadata.class_names = ["a", "b", "c", "d", "e"]
    fused = model.fuse()
    assert isinstance(fused, PatchConvNet)
    assert not any(module.training for module in fused.modules())
    assert fused.eval() is fused
    assert (fused.config, fused.patch_size, fused.num_classes) == (model.config, 4, K)
    assert fused.metadata == model.metadata
    features, all_features = fused.forward_intermediates(make_image(), indices=2)
    close(all_features[-1], features)


def test_no_answer_changes_a_former_one() -> None:
    fused = trained("patchconvnet_s60").fuse()
    with torch.inference_mode():
        kept = fused.forward_intermediates(make_image(), intermediates_only=True)
        copies = [features.clone() for features in kept]
        image = make_image()
        fused(image)
        assert torch.equal(image, make_image())
        assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))
        # blocks add in place, to memory of their own
        close(copies[0], fused.trunk[0](fused.stem(make_image())).permute(0, 3, 1, 2))


def test_refused_in_words(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = trained("patchconvnet_mini")
    with pytest.raises(UserError, match=r"training mode can't be fused.*call eval\(\) first"):
        model.train().fuse()
    with pytest.raises(UserError, match=r"can't be fused to torch\.int8"):
        model.eval().fuse(torch.int8)
    fused = model.eval().fuse()
    folder = tmp_path_factory.mktemp("folder")
    with pytest.raises(UserError, match="can't be trained"):
        fused.train()
    with pytest.raises(UserError, match="can't be saved"):
        fused.save_pretrained(folder)
    with pytest.raises(UserError, match="can't be published"):
        fused.push_to_hub("me/mine")
    with pytest.raises(UserError, match="keeps its classifier"):
        fused.reset_classifier(3)
    with pytest.raises(UserError, match="can't be moved or converted"):
        fused.half()
    with pytest.raises(UserError, match="fused already"):
        fused.fuse()
    with pytest.raises(UserError, match="gives no gradients"):
        fused(make_image().requires_grad_())
    with pytest.raises(UserError, match="smaller than one patch"):
        fused(make_image(height=3))
    for change in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UserError, match="can't be copied"):
            change(fused)


@pytest.mark.slow
def test_compiled_it_answers_the_same_and_an_export_is_refused() -> None:
    fused = trained("patchconvnet_s60", depth=1, embed_dim=256).fuse()
    if not any(getattr(module, "packed", False) for module in fused.modules()):
        pytest.skip("this machine's PyTorch has no oneDNN layers")
    torch.compiler.reset()
    compiled = torch.compile(fused)
    with torch.inference_mode():
        close(compiled(make_image()), fused(make_image()))
    with pytest.raises(UserError, match=r"can't be exported.*that `fuse\(\)` was called on"):
        torch.export.export(fused, (make_image(),))


def test_no_parameter_of_a_fused_network_learns() -> None:
    fused = trained("patchconvnet_s60").fuse()
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert isinstance(fused.get_classifier(), nn.Linear)
    assert not fused(make_image()).requires_grad
