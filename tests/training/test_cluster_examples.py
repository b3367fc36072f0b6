"""The scripts for clusters and the recipes for them, as far as one machine can try them."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_runs import checkpoint, rows, run

from patchconvnet.training.recipe import read_recipe, shipped_recipes

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # of each restart, see training/restarts.py


def torchrun_words(words: list[str]) -> tuple[list[str], list[str]]:
    """torchrun's options, and the words of `patchconvnet train`, by torchrun's own parser."""
    from torch.distributed.run import get_args_parser

    chosen = get_args_parser().parse_args(words)
    assert (chosen.module, chosen.training_script) == (True, "patchconvnet")
    assert (chosen.nproc_per_node, chosen.max_restarts, chosen.rdzv_backend) == ("8", 3, "c10d")
    assert chosen.nnodes in ("2", "$SLURM_JOB_NUM_NODES")
    return words, chosen.training_script_args


def assert_trains_what_there_is(words: list[str]) -> None:
    assert words[0] == "train"
    options = " ".join(words[1:]).replace("=", " ").split()
    assert options[options.index("--recipe") + 1] in shipped_recipes()
    assert options[options.index("--resume") + 1] == "auto"  # or a restart would be refused
    assert "--out" in options


def test_the_slurm_script() -> None:
    script = CLUSTER / "train.slurm"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().replace("\\\n", "").splitlines()
    assert lines[0].startswith("#!")
    begun = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < begun[0]  # sbatch reads no further
    assert f"export {OWN_STORE}=1" in lines
    (command,) = (line for line in lines if line.startswith("srun torchrun"))
    _, words = torchrun_words(shlex.split(command)[2:])
    assert_trains_what_there_is(words)


def test_the_kubernetes_manifest() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "train.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["torchrun"]
    words, train = torchrun_words(container["args"])
    assert_trains_what_there_is(train)
    assert {"name": OWN_STORE, "value": "1"} in container["env"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    endpoint = next(word.partition("=")[2] for word in words if word.startswith("--rdzv-endpoint"))
    assert endpoint == f"{name}-0.{pod['subdomain']}:{container['ports'][0]['containerPort']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["imagenet_s60", "finetune_large"])
def test_recipes_for_clusters_take_steps_on_images_as_imagenet_lies(name: str, tmp_path: Path) -> None:
    for part, count in (("train", 12), ("val", 4)):
        for i in range(count):
            file = tmp_path / "images" / part / ("n01440764", "n01443537")[i % 2] / f"{part}_{i}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((80 + i, 70), 60).convert("RGB").save(file)
    recipe = read_recipe(name)
    assert recipe.checkpoint_every == "10min"
    small = {
        "data": {"name": f"folder:{tmp_path / 'images'}", "workers": 1},
        "model": {"name": "patchconvnet_s60", "pretrained": False, "options": {"embed_dim": 32, "depth": 2}},
        "preprocessing": {"size": (64, 64)},
        "monitor": {"every": 0},
        "epochs": 1,
        "batch_size": 4,
        "precision": "32-true",
        "checkpoint_every": "2 steps",
    }
    run(read_recipe(recipe, small), tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 1
    assert checkpoint(tmp_path / "run")["epoch"] == 1
    assert recipe.batch_size % 64 == 0  # for 1, 2, 4, 8, 16, 32 and 64 devices


def test_imagenet_is_trained_as_the_authors_say() -> None:
    recipe = read_recipe("imagenet_s60")
    o = recipe.optimization
    assert (o.optimizer, o.learning_rate, recipe.batch_size, recipe.model.name) == (
        "lamb",
        3e-3,
        2048,
        "patchconvnet_s60",
    )
