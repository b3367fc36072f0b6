"""The formulas of first-order evidence are PyTorch's derivatives."""

import pytest
import timm
import torch

from patchconvnet import UserError, with_attention_pooling
from patchconvnet.deploy.exportable import evidence_count
from patchconvnet.deploy.first_order import first_order_evidence, has_formulas


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("pooling", "heads"), [("class_attention", 1), ("class_attention", 4), ("class_attention_multi", 1), ("keras", 1)]
)
def test_they_agree_with_autograd(pooling: str, heads: int, act: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(
        "patchconvnet_micro", pooling=pooling, num_classes=9, num_heads=heads, act=act, depth=1, layer_scale=0.3
    ).eval()
    for parameter in network.pooling.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    patches = torch.randn(2, 3, 5, network.num_features)
    classes = torch.tensor([[0, 3, 8], [1, 2, 7]])
    with torch.no_grad():
        wanted = network.pooling.first_order_evidence(patches, network.classify, classes)
        found = first_order_evidence(network, patches, classes)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_other_heads_are_refused_in_words() -> None:
    deep = timm.create_model("patchconvnet_micro", pooling="class_attention", depth_token_only=2, depth=1)
    assert not has_formulas(deep)
    with pytest.raises(UserError, match="--evidence none"):
        evidence_count(deep, "auto")
    assert evidence_count(deep, "none") == 0
    exact = with_attention_pooling("resnet18", num_classes=4)
    assert evidence_count(exact, "auto") == 4
    with pytest.raises(UserError, match="comes for all 4 classes at once"):
        evidence_count(exact, 2)
    single = timm.create_model("patchconvnet_micro", pooling="class_attention", num_classes=300, depth=1)
    assert [evidence_count(single, wanted) for wanted in ("auto", "all", "7")] == [5, 300, 7]
    with pytest.raises(UserError, match="up to 300"):
        evidence_count(single, "many")
