"""An audit from end to end on a tiny network: figures, resuming, what is refused, and that the files hold together."""

import csv
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

import patchconvnet  # noqa: F401, registers the models
from patchconvnet import UserError
from patchconvnet.data.labelled_images import Images
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.faithfulness.audit import AuditSettings, audit
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.metrics import METRICS, Case, Metric
from patchconvnet.faithfulness.metrics.grid_pointing import grid_pointing, mosaic
from patchconvnet.faithfulness.progress import estimated_cost
from patchconvnet.faithfulness.results import HEADER_FILE, RESULTS_FILE, Results
from patchconvnet.faithfulness.runner import choose_mosaics
from patchconvnet.faithfulness.settings import QUICK

NAMES = ["red", "green", "blue", "grey"]
SMALL = {
    "rise_masks": 8,
    "gradient_steps": 4,
    "steps": 8,
    "robustness": 3,
    "mosaics": 2,
    "examples": 2,
    "batch_size": 4,
}
FEW = ("evidence", "attention", "centre", "random")


@pytest.fixture(scope="module")
def images() -> Images:
    """Images of the class's colour on noise, at a random place: (24, 3, 20, 24)."""
    generator = np.random.default_rng(0)
    images = generator.integers(90, 160, (24, 3, 20, 24))
    labels = np.arange(24) % 4
    for i, label in enumerate(labels):
        y, x = generator.integers(0, 10, 2)
        images[i, :, y : y + 10, x : x + 10] = 20
        images[i, [0, 1, 2] if label == 3 else [label], y : y + 10, x : x + 10] = 240
    return Images(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), NAMES)


@pytest.fixture(scope="module")
def model(images) -> nn.Module:
    """A network that learned those colours in a few seconds."""
    torch.manual_seed(0)
    # of few layers, whose evidence lies where its colours do even after so short a training
    plain = {"stem": "strided", "stem_last_act": True, "block": "paper", "pooling_norm": "batch"}
    network = timm.create_model("patchconvnet_micro", embed_dim=24, depth=1, num_classes=4, **plain)
    network.metadata.class_names = list(NAMES)
    network.metadata.preprocessing = {"size": [16, 24], "mean": [0.5] * 3, "std": [0.25] * 3}
    inputs = preprocessing_of(network).batch(images.images)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(inputs), images.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return network.eval()


def masks_of(images: Images) -> list[np.ndarray]:
    return [(image.amax(0) - 125).abs().numpy() > 100 for image in images.images]


def settings(**options) -> AuditSettings:
    return AuditSettings(**{**SMALL, "methods": FEW, **options})


def figures(folder) -> dict:
    """The report's figures, without times."""
    report = json.loads((folder / "report.json").read_text())
    for method in report["methods"]:
        method.pop("seconds_per_image")
    return report["methods"]


@pytest.fixture(scope="module")
def full(model, images, tmp_path_factory):
    """Every method and measure, with masks."""
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    folder = tmp_path_factory.mktemp("audit")
    result = audit(
        model,
        images,
        folder,
        AuditSettings(**SMALL, robustness_methods=tuple(METHODS)),
        masks=masks_of(images),
        name="<tiny>",
        show_progress=False,
    )
    return result, folder


def test_every_method_has_every_figure_that_it_can_have(full):
    result, _ = full
    names = {column.name for column in result.summary.columns}
    assert "grid_pointing_2" in names
    assert "grid_pointing_3" not in names
    assert "9 different classes" in result.summary.left_out["grid_pointing_3"]
    missing = {(method, name) for method in METHODS for name in names if (method, name) not in result.summary.estimates}
    assert missing == {(m, "completeness") for m in METHODS if m not in ("evidence", "integrated_gradients")}
    for (method, name), figure in result.summary.estimates.items():
        assert np.isfinite(figure.mean), (method, name)
    assert result.summary.images == 24
    assert result.summary.top1 == 1
    assert set(result.summary.seconds) == set(METHODS)
    assert all(seconds > 0 for seconds in result.summary.seconds.values())


def test_figures_make_sense(full):
    figure = full[0].summary.estimates
    assert figure["evidence", "completeness"].mean < 1e-5
    assert figure["evidence", "grid_pointing_2"].mean > 0.5
    assert abs(figure["random", "grid_pointing_2"].mean - 0.25) < 0.1
    assert figure["evidence", "energy"].mean > figure["random", "energy"].mean + 0.1
    assert figure["edges", "sanity_rank_correlation"].mean == pytest.approx(1)
    assert figure["centre", "stability_noise"].mean == pytest.approx(1)
    gap = figure["evidence", "insertion"].mean - figure["evidence", "deletion"].mean
    assert figure["evidence", "insertion_minus_deletion"].mean == pytest.approx(gap, abs=1e-5)
    energies = list(figure["evidence", "energy"].values.values())
    assert figure["evidence", "energy"].mean == pytest.approx(np.mean(energies))
    assert figure["evidence", "energy"].deviation == pytest.approx(np.std(energies, ddof=1))
    assert figure["evidence", "energy"].error == pytest.approx(np.std(energies, ddof=1) / np.sqrt(24))


def test_grid_pointing_is_that_of_the_mosaics_made_by_hand(full, model, images):
    result, folder = full
    records = [json.loads(line) for line in (folder / RESULTS_FILE).read_text().splitlines()]
    predictions = [record for record in records if record["kind"] == "prediction"]
    tiles = choose_mosaics(predictions, 2, 2, seed=0)
    inputs = preprocessing_of(model).batch(images.images)
    shares = []
    for tile in tiles:
        labels = images.labels[tile]
        assert sorted(labels.tolist()) == [0, 1, 2, 3]
        maps = METHODS["evidence"](model, mosaic(inputs[tile][None]), labels[None]).pixels((32, 48))
        shares.append(float(grid_pointing(maps).mean()))
    assert result.summary.estimates["evidence", "grid_pointing_2"].mean == pytest.approx(np.mean(shares), abs=1e-4)


def test_mosaics_take_the_most_confident_right_ones():
    predictions = [{"image": i, "label": i % 5, "predicted": i % 5, "probability": 0.5 + i / 100} for i in range(20)]
    predictions[19]["predicted"] = 0  # wrong
    predictions[18]["probability"] = 0.4  # not confident
    tiles = choose_mosaics(predictions, 2, 10, seed=0)
    used = [index for tile in tiles for index in tile]
    assert len(used) == len(set(used))
    assert not {18, 19} & set(used)
    assert all(len({index % 5 for index in tile}) == 4 for tile in tiles)
    assert {15, 16, 17} & set(tiles[0])
    assert choose_mosaics(predictions, 3, 10, seed=0) == []


def test_the_page_stands_alone_and_is_safe(full):
    page = full[0].files.html.read_text()
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page
    bare = re.sub(r"base64,[^\"]*", "base64", page)
    assert set(re.findall(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?([^"'>]{5})""", bare)) == {"data:"}
    assert "<script" not in page
    assert page.count("data:image/jpeg;base64,") >= 2 * 10
    for method in METHODS.values():
        assert method.title in page
    assert not re.search(r"\b(nan|inf)\b", bare)


def test_the_three_files_agree(full):
    result, _ = full
    report = json.loads(result.files.json.read_text())
    rows = list(csv.DictReader(result.files.csv.open()))
    by_row = {(row["method"], row["measure"]): row for row in rows}
    by_json = {method["name"]: method["figures"] for method in report["methods"]}
    for (method, name), figure in result.summary.estimates.items():
        assert by_json[method][name]["mean"] == pytest.approx(figure.mean)
        if (method, name) in by_row:
            assert float(by_row[method, name]["mean"]) == pytest.approx(figure.mean, rel=1e-4)
            assert int(by_row[method, name]["count"]) == figure.count
    assert {row["measure"] for row in rows} >= {column.name for column in result.summary.columns}
    assert report["findings"]["against"] or report["findings"]["for"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, 9, 13])
def test_an_interrupted_audit_goes_on_where_it_stopped(model, images, tmp_path, monkeypatch, after):
    chosen = settings(limit=10, measures=("deletion", "road", "grid_pointing_2", "stability"))
    audit(model, images, tmp_path / "whole", chosen, show_progress=False)
    add, calls = Results.add, []

    def interrupted(self, records):
        if len(calls) == after:
            raise Interrupted
        calls.append(records)
        add(self, records)

    monkeypatch.setattr(Results, "add", interrupted)
    with pytest.raises(Interrupted):
        audit(model, images, tmp_path / "cut", chosen, show_progress=False)
    with (tmp_path / "cut" / RESULTS_FILE).open("a") as file:
        file.write('{"kind":"map","method":"evid')  # as a power cut leaves it
    monkeypatch.setattr(Results, "add", lambda self, records: (calls.append(records), add(self, records)))
    audit(model, images, tmp_path / "cut", chosen, show_progress=False)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    lines = (tmp_path / "cut" / RESULTS_FILE).read_text().splitlines()
    assert len(lines) == len((tmp_path / "whole" / RESULTS_FILE).read_text().splitlines())
    # nothing was measured twice
    keys = [json.dumps([r["kind"], r.get("method"), r.get("n"), r["image"]]) for records in calls for r in records]
    assert len(keys) == len(set(keys))


def test_a_finished_audit_only_writes_its_report_again(model, images, tmp_path, monkeypatch):
    chosen = settings(limit=5, measures=("insertion",))
    audit(model, images, tmp_path, chosen, show_progress=False)
    before = figures(tmp_path)
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(Results, "add", lambda *_: pytest.fail("measured again"))
    audit(model, images, tmp_path, chosen, show_progress=False)
    assert (tmp_path / "report.html").exists()
    assert figures(tmp_path) == before


def test_another_audit_in_the_same_folder_is_refused_in_words(model, images, tmp_path):
    chosen = settings(limit=5, measures=("insertion",), methods=("evidence",))
    audit(model, images, tmp_path, chosen, show_progress=False)
    before = (tmp_path / RESULTS_FILE).read_bytes()
    with pytest.raises(UserError, match="settings limit is 5, now it is 6"):
        audit(model, images, tmp_path, settings(limit=6, measures=("insertion",), methods=("evidence",)))
    other = timm.create_model("patchconvnet_micro", num_classes=4)
    other.metadata = model.metadata
    with pytest.raises(UserError, match="another audit: its model weights is"):
        audit(other, images, tmp_path, chosen, show_progress=False)
    with pytest.raises(UserError, match="data"):
        audit(model, images.subset(slice(12)), tmp_path, chosen, show_progress=False)
    assert (tmp_path / RESULTS_FILE).read_bytes() == before


def test_an_audit_of_an_earlier_version_is_refused_in_words(model, images, tmp_path):
    header = {"package": {"version": "0.1"}, "settings": {"methods": ["evidence", "lead"], "close": 32}}
    (tmp_path / HEADER_FILE).write_text(json.dumps(header))
    (tmp_path / RESULTS_FILE).write_text('{"kind":"map","method":"lead","image":0,"road":0.5}\n')
    with pytest.raises(UserError, match="holds an audit of an earlier version"):
        audit(model, images, tmp_path, settings(), show_progress=False)
    assert (tmp_path / RESULTS_FILE).exists()


def test_a_damaged_folder_is_refused_in_words(model, images, tmp_path):
    (tmp_path / HEADER_FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        audit(model, images, tmp_path, settings(), show_progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read or written"):
        audit(model, images, tmp_path / "file" / "out", settings(), show_progress=False)


def test_uniform_maps_miss_everywhere(images, tmp_path):
    """A network with average pooling attends to all patches alike: its attention map is uniform."""
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_micro", embed_dim=24, depth=1, num_classes=4, pooling="average")
    network.metadata.preprocessing = {"size": [16, 16]}
    chosen = settings(
        limit=4, methods=("attention", "random"), measures=("pointing", "energy", "boxes", "pixels", "road")
    )
    masks = [np.ones((20, 24), bool)] * 24
    result = audit(network, images, tmp_path, chosen, masks=masks, show_progress=False)
    for name in ("pointing", "energy", "max_box_accuracy", "road"):
        assert result.summary.estimates["attention", name].mean == 0
    assert result.summary.estimates["random", "energy"].mean == 1  # every pixel is the object's
    assert result.summary.uninformative == {"attention": 1, "random": 0}
    assert "100.0% of the maps" in (tmp_path / "report.html").read_text()


def test_the_help_names_every_method_and_measure():
    text = " ".join(AuditSettings.__doc__.split())
    assert f"of {', '.join(METHODS)};" in text
    assert f"of {', '.join(METRICS)};" in text


def test_a_metric_needs_no_more_than_its_record(model, images, tmp_path, monkeypatch):
    """Registered, it is a setting and has its column in results, JSON, CSV and report."""

    def spread(case: Case) -> list[float | None]:
        values = case.maps[:, 0].flatten(1).std(1).tolist()
        return [None, *values[1:]] if case.method.name == "centre" else values

    metric = Metric("spread", "Spread", "high", "How uneven a map is", "this test", spread)
    with pytest.raises(UserError, match="unknown measure 'spread'"):
        settings(measures=("spread",))
    monkeypatch.setitem(METRICS, "spread", metric)
    result = audit(
        model, images, tmp_path, settings(limit=12, measures=("spread",), batch_size=12), show_progress=False
    )
    records = [json.loads(line) for line in (tmp_path / RESULTS_FILE).read_text().splitlines()]
    assert sum("spread" in record for record in records) == 12 * len(FEW)
    estimate = result.summary.estimates["evidence", "spread"]
    report = json.loads(result.files.json.read_text())
    assert report["methods"][0]["figures"]["spread"]["mean"] == pytest.approx(estimate.mean)
    assert report["measures"] == [
        {
            "name": "spread",
            "title": "Spread",
            "better": "high",
            "chance": None,
            "about": "How uneven a map is (this test).",
        }
    ]
    rows = {row["method"]: row for row in csv.DictReader(result.files.csv.open()) if row["measure"] == "spread"}
    assert [rows[name]["missing"] for name in FEW] == ["0", "0", "1", "0"]
    page = result.files.html.read_text()
    assert "<dt>Spread</dt><dd>How uneven a map is (this test). Higher is better.</dd>" in page
    assert "<small>1 missing</small>" in page


def test_an_audit_that_was_begun_before_goes_on(model, images, tmp_path):
    """Its settings are compared name by name, so that one more, or another default, would refuse every older folder."""
    assert asdict(AuditSettings(methods=("evidence",))) == {
        "methods": ("evidence",), "measures": None, "limit": None, "target": "predicted", "steps": 32, "mosaics": 100,
        "robustness": 32, "robustness_methods": None, "examples": 6, "rise_masks": 1000, "gradient_steps": 50,
        "batch_size": 16, "forward_batch": 256, "seed": 0, "quick": False,
    }  # fmt: skip
    options = {"methods": ("evidence", "centre"), "measures": ("deletion",), "limit": 6, "batch_size": 3}
    audit(model, images, tmp_path, settings(**options), show_progress=False)
    path = tmp_path / RESULTS_FILE
    lines = path.read_text().splitlines()
    old = [json.loads(line) for line in lines]
    maps = [record for record in old if record["kind"] == "maps"]
    maps[0]["deletion"]["score"] += 1e-5  # as another version, or another machine, rounded
    path.write_text("".join(json.dumps(record) + "\n" for record in old[:-6]))
    audit(model, images, tmp_path, settings(**options), show_progress=False)
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert again[: len(old) - 6] == old[:-6]  # what was measured then stays
    assert [record["image"] for record in again] == [record["image"] for record in old]


def test_costly_methods_take_part_in_sanity_only_when_asked(model, images, tmp_path):
    options = {"limit": 3, "methods": ("evidence", "rise"), "measures": ("stability",)}
    for asked, expected in ((None, {"evidence"}), (("rise",), {"rise"})):
        chosen = settings(robustness_methods=asked, **options)
        result = audit(model, images, tmp_path / str(asked), chosen, show_progress=False)
        assert {method for method, _ in result.summary.estimates} == expected
    with pytest.raises(UserError, match="names 'edges', which is not among methods: evidence, rise"):
        settings(robustness_methods=("edges",), **options)


def test_a_quick_audit_takes_less_and_says_so(model, images, tmp_path):
    quick = AuditSettings(quick=True, steps=4)
    assert (quick.limit, quick.steps, quick.robustness) == (50, 4, 10)
    assert not {"rise", "integrated_gradients"} & set(quick.methods)
    result = audit(
        model, images, tmp_path, AuditSettings(quick=True, methods=FEW, mosaics=1, examples=1), show_progress=False
    )
    assert result.summary.left_out["road"] == "not part of a quick audit"
    errors = result.summary.usual_errors()
    methods = ("evidence", "attention")  # controls don't count
    expected = np.median([result.summary.estimates[name, "deletion"].error for name in methods])
    assert errors["Deletion"] == pytest.approx(expected)
    page = (tmp_path / "report.html").read_text()
    assert "four times as many images halve them" in page
    assert f"{expected:.2g} for Deletion," in page


def test_a_quick_audit_of_photographs_takes_minutes():
    """15 ms a pass of EfficientNet-Lite0 at 224 pixels on one core; without annotations, and with mosaics."""
    quick = AuditSettings(quick=True)
    metrics = [m for name, m in METRICS.items() if name not in QUICK["without"] and not m.needs]
    cost = estimated_cost(0.015, 0.031, (224, 224), quick, [METHODS[name] for name in quick.methods], metrics)
    assert cost.total(200, 50, quick.mosaics, quick.robustness) / 2 < 240


def test_weights_are_as_they_were_after_an_audit(model, images, tmp_path):
    before = {key: (value.clone(), value.stride()) for key, value in model.state_dict().items()}
    audit(model, images, tmp_path, settings(limit=2, measures=("deletion",)), show_progress=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key][0])
        assert value.stride() == before[key][1]


def test_missing_values_are_stored_and_counted(model, images, tmp_path, monkeypatch):
    """Two of six insertion curves are not finite; they are missing everywhere, and nothing stops."""
    compute = METRICS["insertion"].compute

    def broken(case: Case) -> list[dict]:
        rows = compute(case)
        rows[0] = {"score": float("nan"), "curve": [float("nan")] * len(rows[0]["curve"])}
        return rows

    monkeypatch.setitem(METRICS, "insertion", replace(METRICS["insertion"], compute=broken))
    chosen = settings(limit=6, measures=("insertion", "deletion"), batch_size=3)
    result = audit(model, images, tmp_path, chosen, show_progress=False)
    for column, missing in (("insertion", 2), ("insertion_minus_deletion", 2), ("deletion", 0)):
        estimate = result.summary.estimates["evidence", column]
        assert (estimate.count, estimate.missing) == (6, missing)
    assert "up to 2 of 6 values missing" in (tmp_path / "report.html").read_text()


def test_maps_of_the_label_can_be_asked_for(model, images, tmp_path):
    wrong = Images(images.images, (images.labels + 1) % 4, images.class_names)
    options = {"limit": 6, "measures": ("deletion",), "methods": ("evidence",)}
    for target, data in (("label", wrong), ("predicted", wrong), ("predicted", images)):
        audit(
            model, data, tmp_path / f"{target}{data is wrong}", settings(target=target, **options), show_progress=False
        )
    scores = {
        name: figures(tmp_path / name)[0]["figures"]["deletion"]["mean"]
        for name in ("labelTrue", "predictedTrue", "predictedFalse")
    }
    assert scores["labelTrue"] < 0.1 < scores["predictedTrue"] == scores["predictedFalse"]


def test_classes_are_matched_by_name(model, images, tmp_path):
    turned = Images(images.images, 3 - images.labels, NAMES[::-1])
    result = audit(model, turned, tmp_path, settings(limit=6, measures=("deletion",)), show_progress=False)
    assert result.summary.top1 == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measures": ("deletoin",)}, "unknown measure 'deletoin'; known: deletion"),
        ({"measures": ()}, "no measure"),
        ({"methods": ("gradcamm",)}, "Did you mean 'gradcam'"),
        ({"limit": 0}, "limit is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"target": "true"}, "known: predicted, label"),
        ({"batch_size": 512}, "at least batch_size, 512"),
        ({"measures": ("pointing",)}, "needs boxes or masks"),
    ],
)
def test_wrong_settings_are_refused_in_words(model, images, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        audit(model, images, tmp_path, settings(**options), show_progress=False)
    assert not list(tmp_path.iterdir())


def test_wrong_data_is_refused_in_words(model, images, tmp_path):
    with pytest.raises(UserError, match="no images"):
        audit(model, images.subset([]), tmp_path / "a", settings())
    other = Images(images.images, images.labels, ["red", "green", "blue", "pink"])
    with pytest.raises(UserError, match="does not know the data's class 'pink'"):
        audit(model, other, tmp_path / "b", settings())
    with pytest.raises(UserError, match=r"mask of \d+ is 3 × 2 pixels, the image 24 × 20"):
        audit(model, images, tmp_path / "c", settings(), masks=[np.ones((2, 3))] * 24, show_progress=False)
    with pytest.raises(UserError, match="outside of the image"):
        audit(model, images, tmp_path / "d", settings(), boxes=[np.array([[0, 0, 99, 9]])] * 24, show_progress=False)
    with pytest.raises(UserError, match="needs masks"):
        audit(model, images, tmp_path / "e", settings(measures=("pixels",)), boxes=[np.array([[0, 0, 9, 9]])] * 24)


def test_wrong_models_are_refused_in_words(model, images, tmp_path):
    nothing = timm.create_model("patchconvnet_micro", num_classes=4, pooling="none")
    nothing.metadata = model.metadata
    with pytest.raises(UserError, match="no attention"):
        audit(nothing, images, tmp_path / "a", settings(), show_progress=False)

    class Flat(nn.Module):
        num_classes = 4

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 16 * 24, 4)

        def forward(self, images):
            return self.layer(images.flatten(1))

    given = {"preprocessing": preprocessing_of(model), "show_progress": False}
    with pytest.raises(UserError, match="takes no images of 2 times the size"):
        audit(Flat(), images, tmp_path / "b", settings(methods=("centre",), measures=("grid_pointing_2",)), **given)
    with pytest.raises(UserError, match="no spatial map"):
        audit(Flat(), images, tmp_path / "c", settings(methods=("gradcam",), measures=("deletion",)), **given)
    # what needs no map of the network goes
    result = audit(
        Flat(),
        images,
        tmp_path / "d",
        settings(methods=("centre", "rise"), measures=("deletion",)),
        **given,
    )
    assert ("rise", "deletion") in result.summary.estimates
    broken = timm.create_model("patchconvnet_micro", num_classes=4)
    broken.metadata = model.metadata
    torch.nn.init.constant_(broken.head.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        audit(broken, images, tmp_path / "e", settings(methods=("centre",)), show_progress=False)
    assert not (tmp_path / "a").exists()
