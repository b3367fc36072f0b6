"""What a command waits for before it does anything: measured by what is loaded, in processes of their own."""

import subprocess
import sys

import pytest


def in_a_process(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


BEGIN = "import gc, sys; from patchconvnet.commands.torch_imports import import_networks; import_networks(); "


def test_networks_are_imported_without_the_compiler_and_gc_goes_on() -> None:
    said = in_a_process(
        BEGIN
        + "print('timm' in sys.modules, [m for m in sys.modules if m.startswith('torch._dynamo')], gc.isenabled())"
    )
    assert said == "True [] True"


@pytest.mark.slow
def test_afterwards_networks_are_compiled_as_ever() -> None:
    program = (
        "import torch, torchvision; "
        "double = torch.compile(lambda x: 2 * x, backend='eager'); print(double(torch.ones(2)).tolist()); "
        "boxes = torch.tensor([[0, 0.0, 0, 4, 4]]); "
        "print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 1).item())"
    )
    assert in_a_process(BEGIN + program) == "[2.0, 2.0]\n1.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "asks",
    [
        "from torch._dynamo import OptimizedModule as found",
        "import torch._dynamo.eval_frame as found",
        "from torch._dynamo.utils import counters as found",
    ],
)
def test_who_asks_the_compiler_for_more_gets_it(asks: str) -> None:
    program = (
        "import sys, torch; from patchconvnet.commands.torch_imports import _compiler_left_out\n"
        f"with _compiler_left_out():\n    {asks}\n"
        "print(found is not None, sys.modules['torch._dynamo'].__file__ is not None)"
    )
    assert in_a_process(program) == "True True"


def test_a_command_does_not_load_the_compiler(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    explain = ["explain", str(tmp_path / "red.png"), "--model", "cifar10", "--out", str(tmp_path / "out")]
    served = ["serve", "--model", str(tmp_path / "nothing"), "--port", "0"]
    for words, code in ((explain, 0), (served, 2)):
        program = (
            f"import sys; from patchconvnet.cli import main; print(main({words}), 'timm' in sys.modules, "
            "'torch._dynamo' in sys.modules)"
        )
        assert in_a_process(program).splitlines()[-1] == f"{code} True False"


def test_one_of_several_workers_of_serve_does_not_either() -> None:
    program = (
        "import os, sys; from patchconvnet.deploy.server.settings import VARIABLE, Settings; "
        "os.environ[VARIABLE] = Settings(model='cifar10').to_json(); "
        "from patchconvnet.commands.serve import worker; "
        "print(type(worker()).__name__, 'timm' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    assert in_a_process(program).splitlines()[-1] == "FastAPI True False"
