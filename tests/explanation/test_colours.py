"""Colours: values → pixels."""

import numpy as np
import pytest
from made import bump

from patchconvnet.explanation import colours


def test_a_uniform_map_is_one_dark_colour():
    rgba = colours.attention_colours(np.full((4, 4), 1 / 16, np.float32))
    assert len(np.unique(rgba.reshape(-1, 4), axis=0)) == 1
    assert int(rgba[0, 0, :3].sum()) < 300  # of 765: not the yellow of much attention


@pytest.mark.parametrize("peak", [0.2, 1.0, 20.0])
def test_the_brightest_is_the_largest_value_or_three_times_uniform(peak):
    attention = 1 + peak * bump(5, 5, 1)
    attention /= attention.sum()
    expected = max(attention.max(), 3 / 144)
    assert colours.attention_scale(attention) == pytest.approx(expected, rel=1e-5)
    brightest = colours.attention_colours(attention)[5, 5, :3].astype(int).sum()
    assert (brightest > 500) == (peak > 2)


def test_scales_of_several_maps_are_those_of_all():
    maps = np.stack([np.full((4, 4), 1 / 16), np.eye(4) / 4])
    assert colours.attention_scale(maps) == 0.25
    assert colours.evidence_scale(np.array([[[0.5, -2]], [[1, 0]]])) == 2
    assert colours.attention_scale(np.zeros((2, 2))) == colours.evidence_scale(np.zeros((2, 2))) == 1


def test_evidence_is_red_for_and_blue_against_and_transparent_at_zero():
    red, blue, none = colours.evidence_colours(np.array([[1.0, -1.0, 0.0]]))[0].astype(int)
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100
    assert red[3] == blue[3] == round(255 * colours.EVIDENCE_OPACITY)
    assert none[3] == 0
    assert (colours.evidence_colours(np.zeros((4, 4), np.float32))[..., 3] == 0).all()


def test_a_print_is_grey_at_zero_and_keeps_the_image_below_its_colours():
    image = np.zeros((1, 4, 3), np.uint8)
    image[0, 1::2] = 255
    printed = colours.evidence_print(image, np.array([[0, 0, 1, 1]]), 1.0).astype(int)[0]
    assert np.ptp(printed[:2], axis=1).max() <= 8
    assert printed[0].sum() < printed[1].sum()
    assert printed[2].sum() < printed[3].sum()
    assert (printed[2:, 0] > printed[2:, 2] + 40).all()


def test_what_was_not_seen_is_grey_and_framed():
    seen = np.zeros((60, 90), bool)
    seen[5:55, 20:70] = True
    rgba = colours.unseen_colours(seen)
    assert (rgba[seen] == 0).all()
    assert (rgba[~seen, 3] > 128).all()
    outside = rgba[~seen].astype(int)
    assert np.ptp(outside[:, :3], axis=1).max() == 0  # no colour that a map could have
    assert len(np.unique(outside[:, 0])) == 3  # grey, its hatching, and the frame
    assert (rgba[4, 20:70, :3] == 255).all()
    assert (rgba[10:50, 70, :3] == 255).all()
    assert not colours.unseen_colours(np.ones((3, 3), bool)).any()
    assert not colours.unseen_colours(np.zeros((3, 3), bool)).any()
