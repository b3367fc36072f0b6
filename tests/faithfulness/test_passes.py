"""Many passes side by side give what one image at a time gives, in order, and leave threads as they were."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from patchconvnet import UserError, load
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import AttributionOptions
from patchconvnet.faithfulness.metrics.deletion import deletion, insertion
from patchconvnet.faithfulness.metrics.ends import Ends
from patchconvnet.faithfulness.passes import answers, fused
from patchconvnet.models.imagenet import packaged_weights
from patchconvnet.models.passes import PIXELS_AT_ONCE, for_each, images_at_once, in_order

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights: random ones amplify rounding, or are sure of nothing."""
    if packaged_weights() is None:
        pytest.skip("the extra imagenet is not installed")
    return load("imagenet").requires_grad_(False)


@pytest.fixture(scope="module")
def batch(model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of blots of colour, noise for maps, of which one is uninformative, and the likeliest classes."""
    generator = torch.Generator().manual_seed(1)
    blots = torch.randn(5, 3, 4, 6, generator=generator)
    images = nn.functional.interpolate(blots, (64, 96), mode="bicubic")
    maps = torch.randn(5, 64, 96, generator=generator)
    maps[3] = 0.5
    with torch.no_grad():
        return images, maps, model(images).argmax(1)


def test_everything_is_worked_on_once_and_in_order(threads):
    by: set[str] = set()

    def work(item: int) -> tuple[int, int, bool]:
        by.add(threading.current_thread().name)
        return item**2, torch.get_num_threads(), torch.is_grad_enabled()

    found = for_each(work, range(50), CPU)
    assert found == [(item**2, 1, False) for item in range(50)]
    assert torch.get_num_threads() == threads
    assert (threading.current_thread().name in by) == (threads == 1)
    assert for_each(work, [], CPU) == []


def test_an_error_ends_the_work_and_leaves_threads_as_they_were(threads):
    def work(item: int) -> int:
        if item == 3:
            raise UserError("the third")
        return item

    with pytest.raises(UserError, match="the third"):
        for_each(work, range(50), CPU)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("side_by_side", [1, 3])
def test_results_come_in_order_while_few_items_are_taken(threads, side_by_side):
    taken: list[int] = []
    seen: set[int] = set()

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))  # later ones may be ready first
        seen.add(torch.get_num_threads())
        assert not torch.is_grad_enabled()
        return item**2

    for at, result in enumerate(in_order(work, items(), CPU, side_by_side, 5)):
        assert result == at**2
        assert len(taken) <= at + 5, "no more than five wait"
    assert len(taken) == 50
    assert side_by_side == 1 or seen == {1}
    assert torch.get_num_threads() == threads


def test_who_stops_listening_stops_the_work(threads):
    worked_on: list[int] = []

    def work(item: int) -> int:
        worked_on.append(item)
        if item == 2:
            raise UserError("the second")
        return item

    results = in_order(work, range(1000), CPU, 2, 8)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match="the second"):
        next(results)
    stopped = in_order(work, range(3, 1000), CPU, 2, 8)
    next(stopped)
    stopped.close()
    assert len(worked_on) < 40
    assert torch.get_num_threads() == threads


def test_large_images_go_through_a_few_at_a_time():
    assert images_at_once(torch.zeros(1, 3, 224, 224), 256) == 4
    assert images_at_once(torch.zeros(1, 3, 32, 32), 256) == PIXELS_AT_ONCE // 32**2 == 196
    assert images_at_once(torch.zeros(1, 3, 32, 32), 16) == 16
    assert images_at_once(torch.zeros(1, 3, 640, 640), 256) == 1
    assert images_at_once(torch.zeros(1, 3, 224, 224, device="meta"), 256) == 256  # whatever is no CPU


@pytest.mark.parametrize("measure", [deletion, insertion])
def test_a_batch_is_measured_as_each_image_alone(model, batch, threads, measure):
    """Fused, in batches across images and side by side; beside the plain network, one image in a pass."""
    images, maps, classes = batch
    quick = fused(model)
    assert quick is not model
    ends = Ends(quick, images, 7)
    together = measure(quick, images, maps, classes, steps=9, forward_batch=7, ends=ends)
    torch.set_num_threads(1)
    for i in range(len(images)):
        part = slice(i, i + 1)
        alone = measure(quick, images[part], maps[part], classes[part], steps=9, forward_batch=1)
        torch.testing.assert_close(together.probabilities[part], alone.probabilities, atol=1e-6, rtol=0)
        plain = measure(model, images[part], maps[part], classes[part], steps=9, forward_batch=1)
        torch.testing.assert_close(together.probabilities[part], plain.probabilities, atol=1e-5, rtol=0)
    assert together.probabilities.std() > 0.02  # there is something to compare
    torch.testing.assert_close(answers(quick, images, 2), ends.original, atol=1e-6, rtol=0)


def test_flat_maps_cost_no_pass(model, batch):
    images, _, classes = batch
    ends = Ends(model, images, 16)
    assert len(ends.original) == len(ends.removed) == len(images)

    def never(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked")

    curves = deletion(never, images, torch.ones(5, 64, 96), classes, ends=ends)  # type: ignore[arg-type]
    expected = ends.original.gather(1, classes[:, None])
    assert torch.equal(curves.probabilities, expected.expand_as(curves.probabilities))


@pytest.mark.parametrize("name", ["rise", "integrated_gradients", "evidence", "gradcam", "gradcam_contrast"])
def test_methods_of_many_passes_give_each_image_its_own_map(model, batch, name):
    if METHODS[name].needs:
        pytest.importorskip(METHODS[name].needs.partition(".")[0])
    images, _, classes = batch
    network = model if METHODS[name].differentiates else fused(model)
    options = AttributionOptions(rise_masks=10, gradient_steps=3, forward_batch=4)
    torch.set_num_threads(2 if name == "rise" else 1)  # the only one of them that works side by side
    together = METHODS[name](network, images, classes[:, None], options).values
    torch.set_num_threads(1)
    for i in range(len(images)):
        part = slice(i, i + 1)
        alone = METHODS[name](network, images[part], classes[part, None], AttributionOptions(0, 1, 10, 3)).values
        plain = METHODS[name](model, images[part], classes[part, None], options).values
        # gradients jump where an activation does, so that rounding can move a few values of theirs
        tolerance = 1e-2 if METHODS[name].differentiates else 1e-4
        assert (together[part] - alone).norm() <= tolerance * alone.norm()
        assert (together[part] - plain).norm() <= tolerance * alone.norm()


def test_what_cannot_be_fused_answers_itself():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert fused(network) is network
