"""The model card: `README.md` of a model folder, for people and for the hub, which reads the block at its head.

It says what is known, and no more: what is missing from the metadata is missing from the card. Source of its parts:
Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv 1810.03993.
"""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

CARD_FILE = "README.md"
EXAMPLE_FILE = "explained_example.jpg"
MARK = "<!-- written by patchconvnet; delete this line, and the file is yours: it will not be written again -->"
MOST_NAMES = 20
SPLITS = ("test", "validation")
MEASURES = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "top5": ("accuracy", "Top-5 accuracy"),
    "balanced_accuracy": ("accuracy", "Balanced accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "calibration_error": ("expected_calibration_error", "Calibration error"),
}


def model_card(
    architecture: Mapping[str, Any],
    class_names: list[str],
    preprocessing: Mapping[str, Any],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
    *,
    has_example: bool = False,
) -> str:
    """The card of a model, from what is in its `config.json`.

    Args:
        architecture: `kind` and configuration.
        class_names, preprocessing, provenance, metrics: as in `patchconvnet.models.weights.Metadata`.
        has_example: whether an explained image is beside it, as `EXAMPLE_FILE`.

    Returns:
        Markdown, with the hub's metadata block at its head.
    """
    data = _table(provenance.get("data"))
    parts = [
        f"---\n{_block(architecture, data, metrics)}\n---\n\n{MARK}",
        f"# {_title(architecture, data)}",
        "An image classifier that shows which patches of an image its decision came from, made with "
        "[patchconvnet](https://pypi.org/project/patchconvnet/).",
        f"![An image of its data: the map, the likeliest classes, and their evidence]({EXAMPLE_FILE})"
        if has_example
        else "",
        _use(architecture),
        _training(data, provenance, preprocessing),
        _measured(metrics),
        _audit(_table(metrics.get("audit"))),
        _limits(class_names, data, architecture, provenance),
        _classes(class_names),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(architecture: Mapping[str, Any], data: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    name = str(data.get("name", ""))
    results = []
    for split in SPLITS:
        measured = _table(metrics.get(split))
        for key, (kind, title) in MEASURES.items():
            if isinstance(value := measured.get(key), int | float):
                results.append(
                    EvalResult(
                        task_type="image-classification", dataset_type=_slug(name) or "custom",
                        dataset_name=name or "its own data", dataset_split=split, metric_type=kind, metric_name=title,
                        metric_value=round(float(value), 6),
                    )
                )  # fmt: skip
        if results:
            break
    known = name in ("cifar10", "cifar100")
    return ModelCardData(
        library_name="patchconvnet",
        pipeline_tag="image-classification",
        tags=["image-classification", "explainability", "attention", str(architecture.get("kind", "patchconvnet"))],
        datasets=[name] if known else None,
        model_name=_title(architecture, data) if results else None,
        eval_results=results or None,
    ).to_yaml()


def _title(architecture: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    network = str(architecture.get("backbone") or architecture.get("kind", "patchconvnet"))
    return f"{network} on {data['name']}" if data.get("name") else network


def _use(architecture: Mapping[str, Any]) -> str:
    maps = (
        "and no map of where it comes from"
        if architecture.get("pooling") == "none"
        else "with a map of the patches that it comes from"
    )
    return f"""## Use

It names what is in an image, one of the classes below, {maps}.

```sh
pip install patchconvnet
patchconvnet explain cat.jpg --model FOLDER
```

```python
from patchconvnet import explain, load

explanation = explain(load("FOLDER"), "cat.jpg")
print(explanation.predicted)
```"""


def _training(data: Mapping[str, Any], provenance: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> str:
    lines = []
    if data.get("name"):
        counts = [f"{data[key]:,} for {what}" for key, what in _COUNTS.items() if isinstance(data.get(key), int)]
        lines.append(f"Data: `{data['name']}`" + (f" ({', '.join(counts)})" if counts else ""))
    if size := preprocessing.get("size"):
        lines.append(f"Input: {size[0]} × {size[1]} pixels, resized by `{preprocessing.get('resize', 'stretch')}`")
    for key, what in (("source", "Weights from"), ("date", "Date"), ("devices", "Trained on"), ("seconds", "Seconds")):
        if provenance.get(key):
            lines.append(f"{what}: {provenance[key]}")
    if provenance.get("recipe"):
        lines.append("Recipe: in `config.json`, under `provenance`")
    return "## Data and training\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


_COUNTS = {"train": "training", "validation": "validation", "test": "testing"}


def _measured(metrics: Mapping[str, Any]) -> str:
    rows = []
    for split in SPLITS:
        measured = _table(metrics.get(split))
        images = measured.get("images", measured.get("pictures", ""))
        rows += [
            f"| {title} | {split} | {images} | {measured[key]:.4f} |"
            for key, (_, title) in MEASURES.items()
            if isinstance(measured.get(key), int | float)
        ]
    table = "| measure | split | images | value |\n|---|---|---|---|\n" + "\n".join(rows)
    return f"## Measured\n\n{table}" if rows else ""


def _audit(audit: Mapping[str, Any]) -> str:
    """How faithful its maps are, where `patchconvnet audit --card` has measured that."""
    measures, maps = _table(audit.get("measures")), _table(audit.get("maps"))
    rows = []
    for name, measured in maps.items():
        figures = [_table(_table(measured).get(measure)) for measure in measures]
        cells = [
            f"{one['mean']:.3f} ± {one['standard_error']:.3f}"
            if all(isinstance(one.get(key), int | float) for key in ("mean", "standard_error"))
            else "–"
            for one in figures
        ]
        rows.append(f"| {' | '.join([str(name), *cells])} |")
    if not measures or not rows:
        return ""
    heads = [f"{measure} {_BETTER.get(str(better), '')}".strip() for measure, better in measures.items()]
    table = "\n".join([f"| {' | '.join(['map', *heads])} |", "|---" * (len(heads) + 1) + "|", *rows])
    about = f"{audit.get('images', 'some')} images of {audit.get('data', 'its data')}"
    return f"""## Are its maps faithful?

Mean ± standard error on {about}, by `patchconvnet audit`; ↑ higher is better, ↓ lower.

{table}"""


_BETTER = {"high": "↑", "low": "↓", "near zero": "→ 0"}


def _limits(
    class_names: list[str], data: Mapping[str, Any], architecture: Mapping[str, Any], provenance: Mapping[str, Any]
) -> str:
    lines = [
        f"It knows {len(class_names) or architecture.get('num_classes', 'its')} classes and answers with one of them "
        "for any image, also for one that shows none of them.",
        "Probabilities come true on images like those that it was trained on; on others they can be high and wrong.",
        "A map shows what the network counted, which need not be what a person would point at. Measure it on your own "
        "images before relying on it: `patchconvnet audit`.",
    ]
    if not any(isinstance(data.get(key), int) and data[key] for key in ("test", "validation")):
        lines.append(
            "Nothing here says how often it is right: it was not measured on images that it had not learned from."
        )
    if "calibration" in provenance:
        lines.append(f"The temperature of its probabilities was {provenance['calibration']}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _classes(class_names: list[str]) -> str:
    if not class_names:
        return ""
    shown = ", ".join(name.replace("|", r"\|").replace("<", "&lt;") for name in class_names[:MOST_NAMES])
    more = f", and {len(class_names) - MOST_NAMES:,} more in `config.json`" if len(class_names) > MOST_NAMES else ""
    return f"## Classes\n\n{shown}{more}."


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _slug(name: str) -> str:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in name).strip("-")
