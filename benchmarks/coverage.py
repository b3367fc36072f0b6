"""How many of timm's architectures can have attention pooling? Counted by trying.

    python benchmarks/coverage.py                 # goes on where it stopped; writes docs/backbones.md
    python benchmarks/coverage.py --only resnet50 volo_d1_224

Every architecture with a classifier is made on the meta device, which costs little, to see its structure: its class,
how it pools, and its head. Of those of one structure the smallest is made for real, with random weights, and wrapped;
the others count as it does. One thread; what most share comes first, so that it may be stopped at any time.
"""

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm
import torch
from timm.layers import weight_init
from timm.models._registry import _model_to_module
from torch import nn

from patchconvnet import UserError
from patchconvnet.models import AttentionPooled
from patchconvnet.models.backbones import with_attention_pooling

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "benchmarks" / "coverage.json"
PAGE = ROOT / "docs" / "backbones.md"
MARK = "<!-- the table is written by benchmarks/coverage.py -->"


def structure(model: Any) -> str:
    """What decides whether and how a network wraps, apart from its sizes: its class, how it pools, and its head."""
    told = [f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}"]
    told += [f"{key}={getattr(model, key)}" for key in ("global_pool", "num_prefix_tokens") if hasattr(model, key)]
    for name, child in model.named_children():
        if name in HEADS:
            kinds = {type(m).__name__ for m in child.modules()} - {"Identity", "Dropout", "Sequential"}
            told.append(f"{name}:{','.join(sorted(kinds))}")
    return " ".join(told)


HEADS = ("attn_pool", "aux_head", "classifier", "conv_head", "fc", "fc_norm", "final_conv", "head", "head_dist",
         "norm", "pre_logits")  # fmt: skip


@contextmanager
def nothing_initialised() -> Iterator[None]:
    """Networks of the meta device have no numbers to draw, and drawing them takes most of the time."""
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    before = {name: getattr(nn.init, name) for name in names}
    truncated = weight_init._trunc_normal_
    for name in names:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    weight_init._trunc_normal_ = lambda tensor, *_, **__: tensor
    try:
        with torch.device("meta"):
            yield
    finally:
        weight_init._trunc_normal_ = truncated
        for name, function in before.items():
            setattr(nn.init, name, function)


def survey() -> dict[str, dict[str, Any]]:
    """Family, structure and size of each architecture that has a classifier."""
    found: dict[str, dict[str, Any]] = {}
    for name in timm.list_models(exclude_filters="patchconvnet*"):
        family = _model_to_module[name]
        with nothing_initialised():
            try:
                model = timm.create_model(name)
                if not getattr(model, "num_classes", 0):
                    model = timm.create_model(name, num_classes=1000)
                classifier: Any = model.get_classifier()
            except Exception as error:  # of making it of nothing: it is tried for real, then
                found[name] = {"family": family, "structure": f"{name} ({error})", "parameters": 0}
                continue
        if not isinstance(classifier, nn.Identity):
            parameters = sum(parameter.numel() for parameter in model.parameters())
            found[name] = {"family": family, "structure": structure(model), "parameters": parameters}
    return found


def attempt(name: str) -> dict[str, Any]:
    """Wrap it with random weights: how it went."""
    start = time.perf_counter()
    try:
        model: AttentionPooled = with_attention_pooling(name, num_classes=1000)
    except UserError as error:
        why = str(error).partition("cannot get attention pooling: ")[2].partition(". Networks can")[0] or str(error)
        return {"wraps": False, "why": why, "seconds": round(time.perf_counter() - start, 1)}
    except Exception as error:
        return {"wraps": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {
        "wraps": True,
        "layout": model.layout,
        "averages": model.averages,
        "evidence": "first order" if model.between == "layers" else "exact",
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(record: dict[str, dict[str, Any]], tried: dict[str, dict[str, Any]]) -> str:
    """The page's paragraph of totals, and a line for each family."""
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in record.values():
        outcome = tried.get(each["structure"], {"wraps": False, "why": "not tried"})
        families[each["family"]].append({**each, **outcome})
    everything = [each for members in families.values() for each in members]
    wraps = [each for each in everything if each["wraps"]]
    exact = sum(each["evidence"] == "exact" for each in wraps)
    same = sum(each["averages"] for each in wraps)
    lines = [
        f"timm {timm.__version__}: **{len(wraps)} of {len(everything)}** architectures with a classifier wrap "
        f"({len(wraps) / len(everything):.1%}), of {len(families)} families.",
        f"They have {len({each['structure'] for each in everything})} structures, of which {len(tried)} were tried.",
        f"Of those that wrap, {same} average as they are, so that their logits stay, and {exact} have exact evidence.",
        "",
        "| family | wrap | of | logits stay | exact evidence | why the rest do not |",
        "|---|---|---|---|---|---|",
    ]
    for family, members in sorted(families.items()):
        yes = [each for each in members if each["wraps"]]
        reasons = Counter(each["why"] for each in members if not each["wraps"])
        why = "; ".join(f"{reason.replace('|', '/')} ({count})" for reason, count in reasons.most_common())
        stay, sure = sum(each["averages"] for each in yes), sum(each["evidence"] == "exact" for each in yes)
        lines.append(f"| {family} | {len(yes)} | {len(members)} | {stay} | {sure} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="try these architectures, and print how it went")
    parser.add_argument("--again", action="store_true", help="try again what did not wrap")
    parser.add_argument("--limit", type=float, default=700, help="millions of parameters that are tried at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        for name in options.only:
            print(name, attempt(name))
        return
    stored = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if stored.get("timm") != timm.__version__:
        stored = {"timm": timm.__version__, "survey": survey(), "tried": {}}
    record, tried = stored["survey"], stored["tried"]
    shares = Counter(each["structure"] for each in record.values())
    print(f"{len(record)} architectures, {len(shares)} structures, {len(tried)} of them tried", flush=True)
    for kind, share in shares.most_common():
        name = min((n for n in record if record[n]["structure"] == kind), key=lambda n: record[n]["parameters"])
        if kind not in tried or (options.again and not tried[kind]["wraps"]):
            if record[name]["parameters"] > options.limit * 1e6:
                tried[kind] = {"name": name, "wraps": False, "why": f"over {options.limit:.0f} M parameters, not tried"}
            else:
                tried[kind] = {"name": name, **attempt(name)}
            print(share, name, tried[kind], flush=True)
        RECORD.write_text(json.dumps(stored, separators=(",", ":")) + "\n")
        text = PAGE.read_text() if PAGE.is_file() else f"{MARK}\n"
        PAGE.write_text(text[: text.index(MARK) + len(MARK)] + "\n\n" + table(record, tried))


if __name__ == "__main__":
    main()
