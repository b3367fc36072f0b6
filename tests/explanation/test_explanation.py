"""`explain` and its record: every way in, what is kept, what is refused."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import patchconvnet.explanation.explainer
from patchconvnet import UserError
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation import Explanation, explain
from patchconvnet.explanation.patch_grid import seen_pixels

NAMES = ["cat", "dog", "ship", "lorry"]


def make(pooling: str = "additive", **options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "patchconvnet_mini", embed_dim=32, depth=1, num_classes=4, pooling=pooling, layer_scale=1.0, **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.metadata.class_names = list(NAMES)
    model.metadata.preprocessing = {"size": [32, 48], "mean": [0.5] * 3, "std": [0.25] * 3}
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC)


def same(a: Explanation, b: Explanation) -> bool:
    maps = all(np.array_equal(getattr(a, m), getattr(b, m)) for m in ("logits", "attention", "evidence"))
    return maps and a.image.tobytes() == b.image.tobytes()


def test_every_way_in_gives_the_same(model, image, tmp_path):
    path = tmp_path / "tabby.png"
    image.save(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    floats = (array / 255, array.astype(np.float32) / 255, tensor / 255, (tensor / 255).movedim(0, -1))
    ways = (path, str(path), image, array, array.transpose(2, 0, 1), tensor, tensor.movedim(0, -1), *floats)
    explanations = [explain(model, source) for source in ways]
    with path.open("rb") as file:
        explanations += [explain(model, file), explain(model, io.BytesIO(path.read_bytes()))]
    with Image.open(path) as opened:
        explanations.append(explain(model, opened))
    assert all(isinstance(other, Explanation) and same(explanations[0], other) for other in explanations)
    assert [explanations[i].name for i in (0, 1, 2, -3, -2, -1)] == [
        "tabby",
        "tabby",
        "image_0",
        "tabby",
        "image_0",
        "tabby",
    ]
    assert explanations[0].image.size == (90, 60)


def test_grey_and_transparent_arrays_are_what_pil_makes_of_them(model):
    generator = np.random.default_rng(1)
    for array in (generator.integers(0, 256, (20, 30), np.uint8), generator.integers(0, 256, (20, 30, 4), np.uint8)):
        expected = explain(model, Image.fromarray(array))
        assert same(explain(model, array), expected)
        assert same(explain(model, torch.from_numpy(array / 255)), expected)


def test_many_ways_in_for_many(model, image):
    array = np.stack([np.asarray(image), np.asarray(image)[::-1]])
    tensors = torch.from_numpy(array).movedim(-1, 1)
    expected = [explain(model, one) for one in array]
    for many in (list(array), tuple(array), array, tensors, array / 255, tensors / 255, map(Image.fromarray, array)):
        explained = explain(model, many, batch_size=1)
        assert isinstance(explained, list) == (not hasattr(many, "__next__"))
        assert all(same(one, other) for one, other in zip(explained, expected, strict=True))
    assert isinstance(explain(model, array[:1]), list)
    assert explain(model, []) == []
    assert list(explain(model, iter([]))) == []


def test_images_share_forward_passes_and_an_iterator_is_read_batch_by_batch(image, monkeypatch):
    model, sizes, taken = make(), [], []
    model.stem.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))

    def images():
        for k in range(7):
            taken.append(k)
            yield image

    explained = explain(model, images(), batch_size=3, name=(f"n{k}" for k in range(7)))
    assert (sizes, taken) == ([], [])
    assert next(explained).name == "n0"
    assert (sizes, taken) == ([3], [0, 1, 2])
    assert [one.name for one in explained] == ["n1", "n2", "n3", "n4", "n5", "n6"]
    assert sizes == [3, 3, 1]


def test_a_model_by_name(image, tmp_path, model):
    by_name = explain(model.save_pretrained(tmp_path / "mine"), image)
    np.testing.assert_allclose(by_name.logits, explain(model, image).logits, rtol=1e-5)
    assert explain("cifar10", image).class_names[3] == "cat"
    with pytest.raises(UserError, match="no_such_model"):
        explain("no_such_model", image)
    with pytest.raises(UserError, match="given a model of type int"):
        explain(3, image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 5000), (3, 9000)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_thin_and_tiny_images(model, resize, shape):
    preprocessing = Preprocessing((32, 48), resize)
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    explanation = explain(model, Image.fromarray(array), preprocessing=preprocessing)
    assert explanation.placed().shape == shape
    assert np.isfinite(explanation.placed()).all()


CUT = Preprocessing((32, 32), "crop", 0.75, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "class_attention"])
def test_the_whole_of_an_image_is_the_mean_of_its_crops(pooling):
    """Against the crops made by hand and explained one by one."""
    model = make(pooling)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    image = Image.fromarray(pixels)
    whole = explain(model, image, preprocessing=CUT)
    sides = [image.crop((0, 0, 60, 60)), image.crop((30, 0, 90, 60))]  # they cover it
    apart = [explain(model, image, preprocessing=CUT, view="own")]
    apart += [explain(model, side, preprocessing=replace(CUT, crop_ratio=1.0), view="own") for side in sides]
    shares = [0.5, 0.25, 0.25]
    np.testing.assert_allclose(whole.logits, np.average([e.logits for e in apart], axis=0, weights=shares), atol=1e-5)
    for kind in ("attention", "evidence"):
        sums = [getattr(e, kind).sum((1, 2)) for e in apart]
        found = getattr(whole, kind).sum((1, 2))
        np.testing.assert_allclose(found, np.average(sums, axis=0, weights=shares), atol=1e-5)
    if pooling != "class_attention":
        assert whole.exact
        assert max(map(abs, whole.remainder.values())) < 1e-5
    assert whole.geometry.box == (0, 0, 90, 60)
    assert seen_pixels(whole.geometry).all()
    assert whole.grid.shape == (21, 32)  # two cells to each of 42 / 4 and 63 / 4 patches
    crops = whole.to_dict()["input"]["crops"]
    assert [crop["share"] for crop in crops] == shares
    assert crops[2]["box"] == {"left": 30, "top": 0, "right": 90, "bottom": 60}
    assert whole.scaled(45).to_dict()["input"]["crops"][2]["box"]["left"] == 15


def test_what_the_crops_of_a_whole_image_see_is_where_they_are(model):
    """One bright corner, which the centre's crop does not see."""
    with torch.no_grad():
        pixels = np.zeros((60, 90, 3), np.uint8)
        pixels[:8, :8] = 255
    whole, dark = (explain(model, Image.fromarray(values), preprocessing=CUT) for values in (pixels, 0 * pixels))
    changed = np.abs(whole.placed(0, "evidence") - dark.placed(0, "evidence"))
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row < 16
    assert column < 16
    assert changed[30:, 45:].max() < 0.5 * changed.max()
    own, plain = (
        explain(model, Image.fromarray(values), preprocessing=CUT, view="own") for values in (pixels, 0 * pixels)
    )
    np.testing.assert_array_equal(own.logits, plain.logits)


def test_whole_images_share_their_passes(model):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    images = [Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2)), Image.fromarray(pixels[:, :60])]
    sizes = []
    hook = model.stem.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape)))
    together = explain(model, images, preprocessing=CUT)
    hook.remove()
    assert sizes == [(3 + 3 + 2, 3, 32, 32)]
    for image, one in zip(images, together, strict=True):
        assert one.geometry.box == (0, 0, *image.size)
        np.testing.assert_allclose(one.logits, explain(model, image, preprocessing=CUT).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "size"), [("stretch", (90, 60)), ("letterbox", (90, 60)), ("crop", (60, 60)), ("crop", (201, 200))]
)
def test_an_image_that_is_not_cut_is_seen_whole_in_one_pass(model, way, size):
    image = Image.new("RGB", size, "red")
    whole, own = (explain(model, image, preprocessing=Preprocessing((32, 32), way), view=v) for v in ("whole", "own"))
    assert (whole.grid, whole.geometry, whole.crops) == (own.grid, own.geometry, ())
    np.testing.assert_array_equal(whole.attention, own.attention)


def test_even_attention_of_crops_is_flat():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    even, other = make("average"), make("additive")
    with torch.no_grad():
        other.pooling.query.normal_(std=30)
    assert explain(even, image, preprocessing=CUT).attention_is_flat
    assert not explain(other, image, preprocessing=CUT).attention_is_flat


def test_views_have_names(model):
    with pytest.raises(UserError, match="unknown view 'all'; known: own, whole"):
        explain(model, Image.new("RGB", (9, 9)), view="all")


def test_too_thin_to_be_cut_is_said(model):
    with pytest.raises(UserError, match=r"images.1.: an image of 20000 × 1 pixels is too long and thin"):
        explain(
            model,
            [Image.new("RGB", (9, 9)), Image.new("RGB", (20_000, 1))],
            preprocessing=Preprocessing((224, 224), "crop"),
        )


def test_repr_is_one_line(model, image):
    explanation = explain(model, image, target="ship", name="tabby")
    share = f"{explanation.subject.probability:.1%}"
    assert repr(explanation) == f"<Explanation of 'tabby': ship {share}, 8×12 patches, image 90×60>"


def test_it_is_what_the_network_says(model, image):
    explanation = explain(model, image, top=2)
    preprocessing = patchconvnet.explanation.explainer.preprocessing_of(model)
    model.eval()
    with torch.no_grad():
        output = model(preprocessing(image)[None], return_evidence=True)
    np.testing.assert_array_equal(explanation.logits, output.logits[0])
    np.testing.assert_array_equal(explanation.attention, output.attention[0])
    np.testing.assert_array_equal(explanation.evidence, output.evidence[0])
    np.testing.assert_allclose(explanation.probabilities, output.logits[0].softmax(-1), rtol=1e-5)
    assert explanation.attention.shape == (1, 8, 12)
    best = int(output.logits.argmax())
    assert explanation.predicted.index == best
    assert explanation.predicted.name == NAMES[best]
    assert [p.index for p in explanation.top_classes()] == output.logits[0].topk(2).indices.tolist()
    assert explanation.class_token_share == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "class_attention", "class_attention_multi"])
def test_a_batch_is_its_images(pooling, image):
    model = make(pooling)
    images = [image, image.resize((33, 70)), Image.new("L", (5, 5), 90)]
    together = explain(model, images, name=["a", "b", "c"], target="ship")
    for name, source, one in zip("abc", images, together, strict=True):
        alone = explain(model, source, target=2, name=name)
        assert one.name == alone.name == name
        assert one.subject.name == "ship"
        for what in ("logits", "attention", "evidence"):
            np.testing.assert_allclose(getattr(one, what), getattr(alone, what), atol=1e-5)


def test_the_models_mode_and_gradients_are_left_alone(model, image):
    model.train()
    model.stem.eval()
    explain(model, image)
    assert model.training
    assert model.pooling.training
    assert not model.stem.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_size_makes_the_grid_finer(model, image):
    assert explain(model, image, size=64).attention.shape == (1, 16, 16)
    assert explain(model, image, size=(40, 96)).attention.shape == (1, 10, 24)


def test_class_wise_heads_have_a_map_for_each_class(image):
    explanation = explain(make("additive_multi"), image, target="lorry")
    assert explanation.class_wise
    assert explanation.attention.shape == (4, 8, 12)
    np.testing.assert_array_equal(explanation.map_for(), explanation.attention[3])
    np.testing.assert_array_equal(explanation.map_for("dog"), explanation.attention[1])
    np.testing.assert_array_equal(explanation.map_for(kind="evidence"), explanation.evidence[3])


def test_target_leads_the_evidence(model, image):
    explanation = explain(model, image, target="DOG")
    assert explanation.target == 1
    np.testing.assert_array_equal(explanation.map_for(kind="evidence"), explanation.evidence_for("dog"))
    np.testing.assert_array_equal(explanation.map_for(), explanation.attention[0])


def test_attended_is_the_image_under_its_overlay(model, image):
    explanation = explain(model, image)
    overlay = explanation.overlay(map="attention")
    assert overlay.mode == "RGBA"
    assert overlay.size == image.size
    laid = Image.alpha_composite(image.convert("RGBA"), overlay).convert("RGB")
    assert explanation.attended(map="attention").tobytes() == laid.tobytes()
    assert overlay.tobytes() != explanation.overlay(map="attention", smoothing="nearest").tobytes()


def test_evidence_overlay_is_red_for_and_blue_against(model, image):
    explanation = explain(model, image)
    values = explanation.placed(kind="evidence")
    rgba = np.asarray(explanation.overlay(map="evidence"), dtype=int)
    strong = rgba[..., 3] > 60
    redder = rgba[..., 0] > rgba[..., 2]
    assert strong.any()
    assert (redder[strong] == (values[strong] > 0)).all()
    assert rgba[..., 3].max() <= 230  # the image shows through everywhere
    assert (rgba[np.abs(values) < 1e-4 * np.abs(values).max()][:, 3] == 0).all()


def test_scaled_keeps_the_maps_and_their_place(model, image):
    explanation = explain(model, image)
    for side in (30, 180):
        other = explanation.scaled(side)
        assert other.image.size == (side, side * 2 // 3)
        assert other.overlay().size == other.image.size
        ours, theirs = explanation.geometry.box, other.geometry.box
        np.testing.assert_allclose(np.array(theirs) / side, np.array(ours) / 90, atol=1e-9)


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "keras"])
def test_json_round_trip(pooling, image):
    explanation = explain(make(pooling), image, target="ship", top=2)
    record = explanation.to_dict()
    again = json.loads(json.dumps(record))
    assert again == record
    assert record["package"]["version"] == patchconvnet.__version__
    assert record["image"] == {"width": 90, "height": 60}
    assert (record["grid"]["height"], record["grid"]["width"]) == (8, 12)
    assert record["target"]["name"] == "ship"
    assert [c["name"] for c in record["classes"]] == [p.name for p in explanation.top_classes(4)]
    assert sum(c["probability"] for c in record["classes"]) == pytest.approx(1)
    listed = record["attention"]["of"]
    kept = explanation.attention if listed is None else explanation.attention[listed]
    np.testing.assert_array_equal(np.array(again["attention"]["maps"], np.float32), kept)
    assert {e["name"] for e in again["evidence"]["maps"]} >= {"ship", explanation.predicted.name}
    for entry in again["evidence"]["maps"]:
        np.testing.assert_array_equal(np.array(entry["map"], np.float32), explanation.evidence_for(entry["index"]))
        total = entry["bias"] + np.sum(entry["map"]) + entry["remainder"]
        assert total == pytest.approx(float(explanation.logits[entry["index"]]), abs=1e-5)
    assert again["evidence"]["exact"] == explanation.exact


def test_save_writes_complete_files(model, image, tmp_path):
    explanation = explain(model, image, name="tabby")
    files = explanation.save(tmp_path / "new")
    names = ["tabby.json", "tabby_figure.png", "tabby_map.npy", "tabby_overlay.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    np.testing.assert_array_equal(np.load(files.map), explanation.map_for(kind=explanation.shown()))
    with Image.open(files.overlay) as overlay:
        assert overlay.tobytes() == explanation.overlay().tobytes()
    assert json.loads(files.json.read_text())["name"] == "tabby"
    with Image.open(files.figure) as figure:
        assert figure.width > 800
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the explanation of tabby"):
        explanation.save(tmp_path / "file")


def test_shown_in_a_notebook(model, image):
    assert explain(model, image)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("what", ["logits", "attention", "evidence"])
def test_maps_that_are_not_numbers_are_refused(model, image, what):
    explanation = explain(model, image, name="tabby")
    broken = getattr(explanation, what).copy()
    broken.flat[3] = np.nan
    with pytest.raises(UserError, match=f"{what} for tabby .* not finite"):
        replace(explanation, **{what: broken})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "catt"}, "unknown class 'catt'; did you mean 'cat'"),
        ({"target": "zzz"}, "unknown class 'zzz'; known: cat, dog, ship, lorry"),
        ({"target": 4}, "no class 4; the network has 4"),
        ({"target": "12"}, "no class 12"),
        ({"classes": ["hip"]}, "did you mean 'ship'"),
        ({"top": 0}, "top is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"refine": 5}, "refine is 5; it must be between 1 and 4"),
        ({"refine": -1}, "refine is -1"),
        ({"size": 3}, "smaller than one patch"),
    ],
)
def test_bad_options_are_refused_in_words(model, image, options, words):
    with pytest.raises(UserError, match=words):
        explain(model, image, **options)


def test_bad_images_are_refused_in_words(model, tmp_path):
    with pytest.raises(UserError, match="no image file"):
        explain(model, tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match=r"broken\.png is not a readable image"):
        explain(model, tmp_path / "broken.png")
    one = Image.new("RGB", (8, 8))
    with pytest.raises(UserError, match=r"^images.1.: .*broken\.png is not a readable image"):
        explain(model, [one, tmp_path / "broken.png"])
    lazily = explain(model, iter([one, one, str(tmp_path / "none.png")]), batch_size=2)
    assert len([next(lazily), next(lazily)]) == 2
    with pytest.raises(UserError, match=r"^images.2.: there is no image file .*none\.png"):
        next(lazily)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((8, 8, 3), 200.0), "floats must lie in 0..1, and these go from 200 to 200; divide by 255"),
        (np.full((8, 8, 3), -0.5), "go from -0.5 to -0.5; give it as it is before normalisation"),
        (np.full((8, 8, 3), np.nan), "must lie in 0..1, and these go from nan"),
        (np.zeros((8, 8, 3), np.int64), "int64 and shape .8, 8, 3.: its values must be uint8, 0..255, or floats"),
        (np.zeros((8, 8, 3), bool), "must be uint8"),
        (np.zeros((8, 8), object), "must be uint8"),
        (np.zeros((8, 0, 3), np.uint8), "no pixels"),
        (np.zeros((8, 8, 2), np.uint8), "first or last axis must be 1, 3 or 4 channels; several images go in a list"),
        (torch.zeros(3, 20, 4), "channels, height, width. or .height, width, channels.; give it as a PIL image"),
        (torch.zeros(8), "two axes, or three"),
        (torch.zeros(1, 1, 3, 8, 8), "two axes, or three"),
        ([torch.zeros(2, 3, 8, 8)], r"images.0.: .*two axes, or three"),
        (None, "cannot read an image from a value of type NoneType"),
        (7, "type int"),
        (b"GIF", "type bytes; wrap them in io.BytesIO"),
        ({"a": 1}, "type dict"),
        ([Image.new("RGB", (8, 8)), (Image.new("RGB", (8, 8)), 3)], r"images.1.: cannot read .* type tuple"),
        (io.StringIO("text"), "not a readable image"),
    ],
)
def test_what_is_no_image_is_refused_in_words(model, images, words):
    with pytest.raises(UserError, match=words):
        explain(model, images)


def test_names_fit_the_images(model):
    one = Image.new("RGB", (8, 8))
    with pytest.raises(UserError, match="2 names for 1 images"):
        explain(model, [one], name=["a", "b"])
    with pytest.raises(UserError, match="one name, 'tabby', for many images"):
        explain(model, [one], name="tabby")
    with pytest.raises(UserError, match="1 names and more images"):
        list(explain(model, iter([one, one]), name=iter(["a"])))


def test_bad_models_are_refused_in_words(image):
    model = make()
    model.metadata.class_names = ["cat", "dog"]
    with pytest.raises(UserError, match="4 classes and 2 class names"):
        explain(model, image)
    model = make()
    model.metadata.preprocessing = {}
    model.pretrained_cfg = None
    with pytest.raises(UserError, match="give `preprocessing`"):
        explain(model, image)


def test_shared_attention_has_no_map_for_one_class(model, image):
    explanation = explain(model, image)
    with pytest.raises(UserError, match="there is no separate attention map for"):
        explanation.map_for("dog")
    with pytest.raises(UserError, match="unknown kind of map 'heat'"):
        explanation.map_for(kind="heat")


def test_without_names_and_preprocessing_of_its_own(image):
    model = timm.create_model("patchconvnet_mini", embed_dim=32, depth=1)
    explanation = explain(model, image, view="own")
    assert explanation.class_names == [f"class {k}" for k in range(10)]
    assert explanation.geometry.size == (32, 32)


def test_refinement_of_first_order_maps(image):
    explanation = explain(make("class_attention"), image, refine=2)
    assert explanation.attention.shape == (1, 16, 24)
    assert explanation.evidence.shape == (4, 16, 24)
    assert 0 < explanation.class_token_share < 1
