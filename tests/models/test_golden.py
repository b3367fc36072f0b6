"""The network against what other people's code computed: the paper's (PyTorch) and the Keras example's (TensorFlow).

`fixtures/golden_official.json` and `golden_seed.json` say which code, versions and sizes.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from patchconvnet import PatchConvNet
from patchconvnet.models.checkpoints import convert_keras, convert_official

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = 1e-5  # absolute, on logits, activations and attention
GRADIENT_TOLERANCE = 1e-4  # relative to a gradient's largest entry


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / name) as archive:
        return {key: archive[key] for key in archive.files}


def distance(ours: torch.Tensor, golden: np.ndarray) -> float:
    golden = torch.from_numpy(golden)
    assert ours.numel() == golden.numel(), f"{tuple(ours.shape)} against {tuple(golden.shape)}"
    return (ours.detach().double() - golden.double().reshape(ours.shape)).abs().max().item()


# The paper's code


def official(name: str) -> tuple[PatchConvNet, dict[str, np.ndarray]]:
    golden = load(f"golden_official_{name}.npz")
    variant = "patchconvnet_s60_multi" if name == "multi" else "patchconvnet_s60"
    model = timm.create_model(variant, embed_dim=48, depth=2, num_classes=7).eval()
    model.load_state_dict(
        convert_official({key[3:]: torch.from_numpy(value) for key, value in golden.items() if key.startswith("sd/")})
    )
    return model, golden


@pytest.mark.parametrize("name", ["single", "multi", "single_odd_res"])
def test_agrees_with_the_papers_code(name: str) -> None:
    model, golden = official(name)
    image = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        output = model(image, return_attention=True)
        patches = model.stem(image)
        assert distance(patches, golden["act/stem_out"]) < TOLERANCE
        for i, block in enumerate(model.trunk):
            patches = block(patches)
            assert distance(patches, golden[f"act/block_{i}_out"]) < TOLERANCE
        assert distance(model.pooling(patches).vector, golden["forward_features"]) < TOLERANCE
        assert distance(model(image), golden["logits"]) < TOLERANCE
    assert distance(output.logits, golden["logits_f64"]) < TOLERANCE
    softmax = golden["act/attn_softmax_0"]
    own = 0 if name == "multi" else 1  # the single class token is its own first key
    assert distance(output.attention, softmax[..., own:]) < TOLERANCE


# The Keras example


def keras(act: str, dtype: torch.dtype = torch.float32) -> tuple[PatchConvNet, dict[str, np.ndarray]]:
    golden = load("golden_seed.npz")
    model = timm.create_model("patchconvnet_keras", embed_dim=32, act=act).to(dtype).eval()
    model.load_state_dict(convert_keras({key[2:]: value for key, value in golden.items() if key.startswith("w.")}))
    return model, golden


def keras_input(golden: dict[str, np.ndarray], key: str = "act.preprocessed") -> torch.Tensor:
    return torch.from_numpy(golden[key]).permute(0, 3, 1, 2)  # NHWC → NCHW


@pytest.mark.parametrize(
    ("act", "prefix", "dtype"),
    [
        ("gelu_tanh", "act", torch.float32),
        ("gelu_tanh", "ref64", torch.float64),
        ("gelu", "erf64", torch.float32),
        ("gelu", "erf64", torch.float64),
    ],
)
def test_agrees_with_the_keras_example(act: str, prefix: str, dtype: torch.dtype) -> None:
    model, golden = keras(act, dtype)
    image = keras_input(golden, "ref64.preprocessed" if dtype is torch.float64 else "act.preprocessed").to(dtype)
    with torch.inference_mode():
        output = model(image, return_attention=True)
        stem = model.stem(image)
        features = model.forward_features(image).permute(0, 2, 3, 1)
    tolerance = TOLERANCE if dtype is torch.float32 else 1e-12
    assert distance(stem, golden[f"{prefix}.stem"]) < tolerance
    assert distance(features.flatten(1, 2), golden[f"{prefix}.trunk_flat"]) < tolerance
    assert distance(output.attention, golden[f"{prefix}.attention_map"]) < tolerance
    assert distance(output.logits, golden[f"{prefix}.logits"]) < tolerance


def test_every_activation_of_the_keras_example() -> None:
    model, golden = keras("gelu_tanh")
    pooling = model.pooling
    with torch.inference_mode():
        x = F.pad(keras_input(golden), (0, 1, 0, 1))
        first = model.stem.act(model.stem.convs[0](x)).permute(0, 2, 3, 1)
        assert distance(first, golden["act.stem.conv1"]) < TOLERANCE
        patches = model.stem(keras_input(golden))
        for i, block in enumerate(model.trunk):
            patches = block(patches)
            assert distance(patches, golden[f"act.trunk.{i}"]) < TOLERANCE
        tokens = pooling.norm1(pooling.class_token[0])
        normed = pooling.norm1(patches.flatten(1, 2))
        assert distance(normed, golden["act.tokens_norm1"][:, 1:].copy()) < TOLERANCE
        attended, weights = pooling.attn(tokens, normed, attend_self=True)
        assert distance(attended, golden["act.attention_out"]) < TOLERANCE
        assert distance(weights, golden["act.attention_scores"][..., 1:].copy()) < TOLERANCE
        norm2 = pooling.norm2(pooling.class_token + attended)
        assert distance(norm2, golden["act.cls_norm2"]) < TOLERANCE
        norm3 = pooling.norm3(norm2)[:, 0]
        assert distance(norm3, golden["act.cls_norm3"]) < TOLERANCE
        assert distance(pooling.mlp(norm3), golden["act.mlp"]) < TOLERANCE
        assert distance(pooling(patches).vector, golden["act.cls_final"]) < TOLERANCE


def test_gradients_of_the_keras_example() -> None:
    model, golden = keras("gelu_tanh")
    labels = torch.from_numpy(golden["train.labels"]).long()
    loss = F.cross_entropy(model(keras_input(golden)), labels)
    loss.backward()
    assert loss.item() == pytest.approx(golden["train.losses"][0], abs=1e-5)
    expected = convert_keras({key[5:]: value for key, value in golden.items() if key.startswith("grad.")})
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(ours) == set(expected)
    for name, gradient in expected.items():
        # the key bias moves all scores alike: its true gradient is zero, and rounding is all there is to compare
        scale = max(gradient.abs().max().item(), 1e-3)
        assert (ours[name] - gradient).abs().max().item() < GRADIENT_TOLERANCE * scale, name
