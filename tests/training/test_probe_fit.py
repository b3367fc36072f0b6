"""The fitted head beside scikit-learn's logistic regression, and where only attention can tell the classes apart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from patchconvnet.models.pooling import SlicedPooling
from patchconvnet.training.probe_fit import fit_probe, sliced_attention


def patches_of(count: int, seed: int, patches: int = 9, channels: int = 16) -> tuple[Tensor, Tensor]:
    """Noise, with one patch that is marked in the last channels and has the class's colour in the first three."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, patches, channels, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    place = torch.randint(patches, (count,), generator=generator)
    rows = torch.arange(count)
    values[rows, place, labels] += 3
    values[rows, place, 8:] = 4
    return values, labels


def accuracy(head, values: Tensor, labels: Tensor) -> float:
    logits = sliced_attention(values, head.queries) @ head.weight.mT + head.bias
    return (logits.argmax(1) == labels).float().mean().item()


def test_without_queries_it_is_logistic_regression_on_the_averages() -> None:
    (values, labels), (held, held_labels) = patches_of(300, 0), patches_of(100, 1)
    penalty = 1e-2
    head = fit_probe(values[None], labels, held, held_labels, 3, 0, penalties=(penalty,))
    assert not head.queries.any()
    averages = values.mean(1)
    scale = averages.std()
    # scikit-learn: C·Σ loss + |w|²/2, ours: mean loss + penalty·|w|², on averages divided by their deviation
    theirs = LogisticRegression(C=1 / (2 * penalty * len(labels)), tol=1e-8, max_iter=1000)
    theirs.fit((averages / scale).numpy(), labels.numpy())
    expected = theirs.predict_log_proba((held.mean(1) / scale).numpy())
    ours = F.log_softmax(held.mean(1) @ head.weight.mT + head.bias, 1).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_queries_find_the_patch_that_tells() -> None:
    (values, labels), (held, held_labels), (test, test_labels) = (patches_of(600, s) for s in range(3))
    average = fit_probe(values[None], labels, held, held_labels, 3, 0)
    attending = fit_probe(values[None], labels, held, held_labels, 3, 4)
    assert attending.loss < attending.loss_of_average == pytest.approx(average.loss)
    assert accuracy(attending, test, test_labels) > accuracy(average, test, test_labels) + 0.1


def test_where_every_patch_tells_the_same_attention_stays_uniform_or_does_no_harm() -> None:
    values, labels = patches_of(200, 0)
    values = values[:, :1].expand(-1, 9, -1)
    held, held_labels = patches_of(100, 1)
    head = fit_probe(values[None], labels, held, held_labels, 3, 4)
    assert head.loss <= head.loss_of_average


def test_the_penalty_is_chosen_by_the_validation_images() -> None:
    (values, labels), (held, held_labels) = patches_of(60, 0, channels=64), patches_of(200, 1, channels=64)
    losses = {
        penalty: fit_probe(values[None], labels, held, held_labels, 3, 0, penalties=(penalty,)).loss
        for penalty in (1e-4, 1e-2, 1.0)
    }
    head = fit_probe(values[None], labels, held, held_labels, 3, 0, penalties=tuple(losses))
    assert head.loss == pytest.approx(min(losses.values()), rel=0.02)
    assert head.penalty == min(losses, key=losses.__getitem__)


def test_it_pools_as_the_network_does() -> None:
    pooling = SlicedPooling(16, 4, norm="none")
    torch.nn.init.normal_(pooling.query)
    values, _ = patches_of(5, 0)
    theirs = pooling(values.unflatten(1, (3, 3))).vector
    torch.testing.assert_close(sliced_attention(values, pooling.query), theirs)
