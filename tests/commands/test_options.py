"""What is typed: dashes and underscores, sizes and lists, the help's words, and what the commands write."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from patchconvnet.cli import COMMANDS, main
from patchconvnet.commands.command_line import CommandLine, expected
from patchconvnet.commands.explain import unique_stems
from patchconvnet.commands.terminal import printable
from patchconvnet.errors import UserError
from patchconvnet.models import Metadata


def command(*, size: int | tuple[int, int] | None = None, names: tuple[str, ...] = ("a",), learning_rate: float = 1.0,
            strict: bool = False, out: Path = Path("x"), full: tuple[int, int] = (1, 1)) -> None:  # fmt: skip
    """A command.

    Args:
        size: of something.
        names: several.
        learning_rate: how fast.
        strict: or not.
        out: where to.
        full: both.
    """


def parsed(*words: str) -> dict[str, object]:
    parser = CommandLine(command, aliases={"rate": "learning_rate"})
    parser.add_function_arguments(command, as_group=False)
    return dict(parser.parse(words))


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--learning-rate", "2"], "learning_rate", 2.0),
        (["--learning_rate=2"], "learning_rate", 2.0),
        (["--learning.rate", "1e-3"], "learning_rate", 1e-3),
        (["--rate", "3"], "learning_rate", 3.0),
        (["--size", "64x48"], "size", (64, 48)),
        (["--size", "64×48"], "size", (64, 48)),
        (["--size", "[64, 48]"], "size", (64, 48)),
        (["--size", "64"], "size", 64),
        (["--size", "null"], "size", None),
        (["--full", "96"], "full", (96, 96)),
        (["--names", "evidence,centre"], "names", ("evidence", "centre")),
        (["--names", "evidence"], "names", ("evidence",)),
        (["--names", '["a", "b"]'], "names", ("a", "b")),
        (["--strict"], "strict", True),
        (["--strict", "--size", "3"], "strict", True),
        (["--strict", "false"], "strict", False),
        (["--out", "some where"], "out", Path("some where")),
    ],
)
def test_options_are_read_as_people_type_them(words: list[str], name: str, value: object) -> None:
    assert parsed(*words)[name] == value


def test_a_word_that_no_switch_takes_is_no_image_where_there_are_none() -> None:
    with pytest.raises(UserError, match="--strict: expected true or false, not maybe"):
        parsed("--strict", "maybe")
    assert main(["train", "--model.whiten", "maybe"]) == 2


def test_a_switch_leaves_the_next_word_to_a_command_that_takes_images() -> None:
    parser = CommandLine(command)
    parser.add_argument("images", nargs="*")
    parser.add_function_arguments(command, as_group=False)
    assert dict(parser.parse(["--strict", "maybe.jpg"])).items() >= {"strict": True, "images": ["maybe.jpg"]}.items()


def test_types_in_words() -> None:
    assert expected(int | tuple[int, int] | None) == "a whole number or two whole numbers such as 64x48 or null"
    assert expected(tuple[str, ...]) == "a list of names"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_no_python_types(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "<class" not in text
    assert "type:" not in text
    for option in re.split(r"\n  (?=-)", text)[1:]:
        about = " ".join(option.split()[2:])  # behind its name and its value's
        assert not ("(required)" in about and "default" in about), about
        assert about.count("(default: ") + about.count("by default") <= 1, about
        assert "None" not in about, about
    assert "CONFIG" not in text


def test_the_first_help_imports_nothing_heavy() -> None:
    code = "import sys; from patchconvnet.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "timm", "numpy", "jsonargparse", "rich", "PIL") if f"'{name}'" in modules]


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("a\x1b[2Jb\nc\udce9\u202e") == "a\\x1b[2Jb\\x0ac\\xe9\\u202e"
    assert printable("日本 → 🐈") == "日本 → 🐈"


def test_stems_differ_and_are_short() -> None:
    stems = unique_stems([Path("a/x.png"), Path("b/x.png"), Path("b/x.jpg"), Path("x" * 250 + ".png")])
    assert stems[:3] == ["x", "b_x", "b_x_2"]
    assert len(stems[3]) == 200


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_micro", num_classes=2, embed_dim=16, depth=1)
    model.metadata = Metadata(class_names=["a", "b"], preprocessing={"size": [16, 16]})
    model.save_pretrained(tmp_path / "run" / "best")
    for number, name in enumerate("ab"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 20), (90 * number, 40, 30 * i)).save(tmp_path / "flat" / name / f"{i}.png")
    return tmp_path


def test_predictions_are_written_as_a_table(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ["evaluate", "--model", "run", "--data", "folder:flat", "--workers", "0", "--out", "out"]
    assert main(evaluate) == 0
    assert "all 12 images count" in capsys.readouterr().out
    rows = list(csv.DictReader((run_folder / "out" / "predictions.csv").open()))
    assert len(rows) == 12
    assert {row["true class"] for row in rows} == {"a", "b"}
    assert all(Path(row["path"]).parent.name == row["true class"] for row in rows)
    assert all(abs(float(row["a"]) + float(row["b"]) - 1) < 1e-4 for row in rows)
    right = sum(row["true class"] == row["class"] for row in rows)
    assert json.loads((run_folder / "out" / "evaluation.json").read_text())["top1"] == pytest.approx(right / 12)

    assert main(["explain", "flat", "--model", "run", "--only", "json,overlay", "--map", "evidence", "--out", "e"]) == 0
    assert "run: knows a, b" in capsys.readouterr().out
    explained = {row["path"]: row for row in csv.DictReader((run_folder / "e" / "predictions.csv").open())}
    for row in rows:
        assert float(explained[row["path"]]["a"]) == pytest.approx(float(row["a"]), abs=1e-4)
    record = json.loads((run_folder / "e" / "3.json").read_text())
    assert record["source"] == "flat/a/3.png"
    assert record["shown"] == "evidence"
    assert not list((run_folder / "e").glob("*figure.png"))


@pytest.mark.parametrize(
    ("words", "count"), [(["--split", "all"], 12), (["--test", "1.0"], 12), (["--split", "test"], 1)]
)
def test_which_images_count(run_folder: Path, words: list[str], count: int) -> None:
    assert main(["evaluate", "--model", "run", "--data", "folder:flat", "--workers", "0", "--out", "out", *words]) == 0
    assert json.loads((run_folder / "out" / "evaluation.json").read_text())["images"] == count
