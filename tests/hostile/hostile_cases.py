"""The table: what is typed, how it must end, and what must be said."""

from typing import NamedTuple


class Case(NamedTuple):
    """One command; `said` must be somewhere in its output."""

    group: str
    words: list[str]
    exits: tuple[int, ...]
    said: str


def _images() -> list[Case]:
    good = [
        "good.png",
        "good.jpg",
        "1x1.png",
        "grey.png",
        "deep.png",
        "one_bit.png",
        "rgba.png",
        "grey_alpha.png",
        "palette.gif",
        "animated.gif",
        "cmyk.jpg",
        "webp.webp",
        "tiff.tif",
        "pages.tif",
        "bmp.bmp",
        "ppm.ppm",
        "turned.jpg",
        "progressive.jpg",
        "jpeg_inside.png",
        "no_ending",
        "foreign.dat",
        "100%.png",
        "{braces}.png",
        "$\\frac$.png",
        "-dash.png",
        "日本.png",
        "🐈.png",
        "[red]brackets.png",
        "1x5000.png",
        "5000x1.png",
        "2x5000.png",
        "3x9000.png",
        "9000x3.jpg",
    ]
    named = {
        "with space.png": "with space", "new\nline.png": "new\\x0aline", "esc\x1b[2J\x1b]0;x\x07.png": "esc\\x1b[2J",
        "tab\t.png": "tab\\x09", "\u202egnp.exe.png": "\\u202egnp", "a" * 240 + ".png": "aaa",
        "caf\udce9.png": "caf\\xe9.png", "\udcff\udcfe.png": "\\xff\\xfe.png",
    }  # fmt: skip
    bad = {
        "floats.tif": "32 bit", "thirty_two_bit.tif": "32 bit", "empty.png": "not a readable image", "text.jpg": "not a readable image",
        "random.png": "not a readable image", "cut.png": "not a readable image", "cut.jpg": "not a readable image",
        "start.png": "not a readable image", "start.jpg": "not a readable image", "flipped.png": "not a readable image",
        "page.jpg": "not a readable image", "archive.png": "not a readable image", "document.jpg": "not a readable image",
        "drawing.svg": "not a readable image", "bomb.png": "limit", "large.png": "limit", "no_pixels.png": "not a readable image",
        "missing_pixels.png": "not a readable image", "photo.heic": "not a readable image", "folder.png": "no images in",
        "nothing.png": "no image or folder", "itself.png": "no image or folder", "pipe.png": "no image or folder",
        "absent.png": "no image or folder", "*.xyz": "no images in", "nul\0.png": "not a file name",
    }  # fmt: skip
    explain, crops = ["explain", "--model=model"], ["explain", "--model=models/crops"]
    thin = ["1x5000.png", "5000x1.png", "2x5000.png", "3x9000.png", "9000x3.jpg"]
    return [
        *(Case("images", [*crops, f"images/{name}"], (2,), "too long and thin") for name in thin),
        *(Case("images", [*explain, f"images/{name}"], (0,), name.rpartition(".")[0]) for name in good),
        *(Case("images", [*explain, f"images/{name}"], (0,), said) for name, said in named.items()),
        *(Case("images", [*explain, f"images/{name}"], (2,), said) for name, said in bad.items()),
        Case("images", [*explain, "images"], (0,), "images could not be explained and were left out"),
        Case("images", [*explain, "images", "--strict"], (2,), "image"),
        Case("images", [*explain, "images/*.jpg", "images/good.png"], (0,), "contact sheet"),
        Case("images", ["explain", "/dev/null"], (2,), "no image or folder"),
        Case("images", ["explain", "/dev/zero"], (2,), "no image or folder"),
        Case("images", ["explain", ""], (2,), "an empty word"),
    ]


def _data() -> list[Case]:
    table = {
        "flat": (0, "all 12 images count"), "split": (0, "6 images"), "two_validations": (2, "two validation folders"),
        "extra_class": (2, "classes that the training folder lacks: c"), "one_class": (2, "one class folder only"),
        "empty_class": (2, "no images in class folder b"), "text_class": (2, "1 .txt"), "empty": (2, "no class folders"),
        "heic_class": (2, "3 .cr2 (export raw photographs as JPEG)"), "raw_among": (0, "1 .cr2 (export raw"),
        "some_broken": (0, "1 of 13 files"), "class_broken": (2, "no readable images are left in class folder b"),
        "loose": (0, "1 images beside the class folders"), "unsorted": (0, "the folders beside its splits: unsorted"),
        "class_train": (2, "(bus, train)"), "class_test": (2, "(exam, test)"), "nested": (0, "12 images"),
        "control": (2, "a\\x1b[31m"), "bytes": (2, "caf\\xe9"), "markup": (2, "[bold]"), "long": (2, "aaaa"),
        "circle": (0, "images"), "tiny": (2, "each class must keep one"), "file": (2, "is a file"),
        "elongated": (0, "images"), "large": (0, "large.png"), "absent": (2, "there is no folder"),
    }  # fmt: skip
    evaluate = ["evaluate", "--model", "model", "--batch-size", "4", "--workers", "0", "--data"]
    train = ["train", "--recipe", "recipes/small.yaml", "--monitor.every", "1", "--data"]
    flat = [*evaluate, "folder:data/flat"]
    return [
        *(Case("data", [*evaluate, f"folder:data/{name}"], (exit,), said) for name, (exit, said) in table.items()),
        *(
            Case("training", [*train, f"folder:data/{name}", "--data.workers=0"], (exit,), said)
            for name, exit, said in (
                ("flat", 0, "model folder"),
                ("bytes", 0, "model folder"),
                ("markup", 0, "model folder"),
                ("long", 0, "model folder"),
                ("control", 0, "model folder"),
                ("class_train", 0, "model folder"),
                ("elongated", 0, "model folder"),
                ("empty_class", 2, "no images in class folder b"),
                ("one_class", 2, "one class folder only"),
                ("tiny", 2, "each class must keep one"),
            )
        ),
        *(
            Case("data", [*evaluate, name], (2,), said)
            for name, said in (
                ("csv:", "names no file"),
                ("csv:absent.csv", "there is no file"),
                ("csv:data/flat", "is not a file"),
                ("csv:images/random.png", "images/random.png"),
                ("csv:nul\0.csv", "there is no file"),
                ("parquet:images/text.jpg", "cannot be read as Parquet"),
                ("parquet:data/flat", "no Parquet files in"),
                ("hf:absent/none/at/all", "cannot be loaded"),
                ("wds:absent-{0..2}.tar", "there is no tar file"),
                ("wds:{0..2.tar", "braces"),
                ("wds:images/text.jpg", "is cut off, damaged or no tar file"),
                ("wds:http://127.0.0.1:9/a.tar?patience=0", "nothing for 0 seconds (["),
                ("wds:http://127.0.0.1:9/a?patience=0&keep=no", "nothing for 0 seconds (["),
                ("wds:http://here:port/a.tar", "is no address"),
                ("wds:x.tar?patience=soon", "patience is 'soon'"),
                ("wds:x.tar?lable=y", "has no option 'lable'"),
                ("litdata:", "names no folder"),
                ("litdata:absent", "there is no folder absent"),
                ("litdata:data/flat", "has no index.json"),
                ("litdata:a_file", "there is no folder"),
                ("litdata:s3://bucket/pets", "reads folders of this machine and of http"),
            )
        ),
        *(
            Case("data", ["shard", *words], (2,), said)
            for words, said in (
                (["--data", "folder:data/flat"], "required: --out"),
                (["--data", "folder:absent", "--out", "new"], "there is no folder"),
                (["--data", "folder:data/flat", "--out", "data"], "not an empty folder"),
                (["--data", "folder:data/flat", "--out", "a_file/x"], "cannot write"),
                (["--data", "folder:data/flat", "--out", "new", "--workers", "0"], "workers is 0"),
                (["--data", "folder:data/flat", "--out", "new", "--format", "zip"], "--format"),
                (["--data", "folder:data/flat", "--out", "new", "--max-bad", "few"], "max_bad is 'few'"),
                (["--data", "folder:data/flat", "--out", "new", "--resize=-1"], "resize is -1"),
                (["--data", "folder:data/flat", "--out", "new", "--images-per-shard", "0"], "images_per_shard is 0"),
            )
        ),
        Case("data", [*evaluate, "folder:"], (2,), "names no folder"),
        Case("data", [*evaluate, "folder:~nobody_here/x"], (2,), "there is no folder"),
        Case("data", [*evaluate, "folder:data/nul\0"], (2,), "folder"),
        Case("data", [*evaluate, "data/flat"], (2,), "Did you mean 'folder:data/flat'?"),
        Case("data", [*evaluate, "digit"], (2,), "Did you mean 'digits'?"),
        Case("data", [*evaluate, "digits"], (2,), "are not the data's"),
        Case("data", [*flat, "--split", "all"], (0,), "12 images"),
        Case("data", [*flat, "--test", "1.0"], (0,), "12 images"),
        Case("data", [*flat, "--split", "test"], (0,), "1 images"),
        Case("data", [*flat, "--split", "tset"], (2,), "one of auto, train, validation, test, all"),
        Case("data", [*flat, "--test", "0", "--split", "test"], (2,), "no test split"),
        Case("data", [*flat, "--test=-1"], (2,), "test is -1"),
        Case("data", [*flat, "--test", "nan"], (2,), "expected a number or null, not nan"),
        Case("data", [*flat, "--test", "inf"], (2,), "expected a number or null, not inf"),
        Case("data", [*flat, "--test", "99"], (2,), "leave some"),
        Case("data", [*flat, "--test", "2.5"], (2,), "test is 2.5"),
        Case("data", [*flat, "--test", "half"], (2,), "--test: expected a number or null, not half"),
        Case("data", [*flat, "--data-seed", "12345678901234567890"], (2,), "seed"),
        Case("data", [*flat, "--data_seed=-3"], (2,), "seed"),
        Case("data", [*flat, "--batch-size", "0"], (2,), "batch_size is 0"),
        Case("data", [*flat, "--workers=-1"], (2,), "workers -1"),
        Case("data", [*flat, "--workers", "1000000000"], (2,), "workers 1000000000; give 1 to 1,000,000 images, and"),
        Case("data", [*flat, "--batch-size", "1" + 30 * "0"], (2,), "; give 1 to 1,000,000 images, and 0 to"),
        Case("data", [*flat, "--out", "a_file"], (2,), "cannot write"),
        Case("data", [*flat, "--out", "a_file/x"], (2,), "cannot write"),
        Case("data", [*flat, "--mirror"], (0,), "mirrored too"),
        Case("data", [*flat, "--mirror", "maybe"], (2,), "maybe"),
        Case("data", ["evaluate", "--model", "run", "--data", "folder:data/flat"], (0,), "12 images"),
        Case("data", ["evaluate", "--data", "digits"], (2,), "required: --model"),
        Case("data", ["evaluate", "--model", "digits_model", "--data", "digits", "--workers", "0"], (0,), "270 images"),
    ]


def _models() -> list[Case]:
    ok = "names_control names_markup names_long"
    refused = [
        "empty",
        "not_json",
        "list",
        "nothing_inside",
        "no_text",
        "utf16",
        "nested",
        "null",
        "config_folder",
        "deep",
        "deeper",
        "wide",
        "negative",
        "zero",
        "text_depth",
        "half_depth",
        "unknown",
        "more_classes",
        "many_classes",
        "no_pooling",
        "other_width",
        "channels",
        "null_depth",
        "list_depth",
        "true_depth",
        "names_text",
        "names_numbers",
        "names_few",
        "names_null",
        "names_dict",
        "names_nested",
        "names_surrogates",
        "preprocessing_size_huge",
        "preprocessing_size_zero",
        "preprocessing_size_text",
        "preprocessing_size_one",
        "preprocessing_crop_tiny",
        "preprocessing_mean_text",
        "preprocessing_key",
        "preprocessing_std_zero",
        "preprocessing_text",
        "preprocessing_crop_nan",
        "preprocessing_list",
        "preprocessing_five_channels",
        "preprocessing_infinite",
        "weights_empty",
        "weights_random",
        "weights_pickle",
        "weights_missing",
        "weights_cut",
        "weights_whole_numbers",
        "weights_nan",
        "weights_other_shape",
        "weights_few",
        "weights_more",
    ]
    damaged = "whole_numbers_checked nan_checked other_shape_checked few_checked more_checked"
    damaged = [f"weights_{name}" for name in damaged.split()] + ["flipped_low", "flipped_high", "flipped_sign"]
    no_checksum = "number empty list control long"
    explain = ["explain", "images/good.png", "--model"]
    return [
        *(Case("models", [*explain, f"models/{name}"], (2,), "is damaged or was replaced") for name in damaged),
        Case("models", [*explain, "models/checksum_other"], (2,), "is damaged or was replaced"),
        *(
            Case("models", [*explain, f"models/checksum_{name}"], (2,), "64 hexadecimal digits of a checksum, not")
            for name in no_checksum.split()
        ),
        *(Case("models", [*explain, f"models/checksum_{name}"], (0,), "good") for name in ("right", "null")),
        *(Case("models", [*explain, f"models/{name}"], (0,), "good") for name in ok.split()),
        *(Case("models", [*explain, f"models/{name}"], (2,), "patchconvnet: ") for name in refused),
        *(Case("models", [*explain, f"models/{name}"], (0, 2), "") for name in ("names_twice", "names_empty")),
        Case("models", [*explain, "run"], (0,), "good"),
        Case("models", [*explain, "a_file"], (2,), "a_file"),
        Case("models", [*explain, "absent"], (2,), "absent"),
        Case("models", [*explain, "../../etc/passwd"], (2,), "etc/passwd"),
        Case("models", [*explain, ""], (2,), "model"),
        Case("models", [*explain, "nul\0"], (2,), "model"),
        Case("models", [*explain, "resnet5O"], (2,), "resnet50"),
        Case("models", [*explain, "\x1b[2J"], (2,), "\\x1b[2J"),
    ]


def _recipes() -> list[Case]:
    table = {
        "empty": "", "list": "recipe", "number": "recipe", "text": "recipe", "unknown": "colour", "unknown_inside": "nme",
        "epochs_text": "epochs", "epochs_zero": "epochs must be at least 1", "epochs_half": "epochs", "epochs_null": "epochs",
        "size_text": "size", "size_one": "size", "size_huge": "100000", "rate_nan": "learning_rate",
        "rate_negative": "learning_rate must be above 0", "seed_long": "seed", "seed_negative": "seed must be 0 or more",
        "group_text": "data", "group_list": "data", "tag": "recipe", "tabs": "recipe", "open_quote": "recipe",
        "laughs": "not accepted", "jpeg": "recipe", "utf16": "recipe", "latin": "recipe", "nul": "recipe", "control": "\\x1b",
        "workers": "data.workers must be 0 or more", "memory": "memory_gb", "batch_huge": "batch_size",
        "precision": "precision", "options_text": "options", "betas": "betas", "depth_huge": "depth",
        "option_unknown": "dpth", "augmentation": "mixup", "crop": "crop_ratio", "data_seed": "seed",
        "validation": "validation is -1", "folder": "recipe", "absent": "no recipe",
    }  # fmt: skip
    del table["empty"]
    return [
        *(Case("recipes", ["train", "--recipe", f"recipes/{name}.yaml"], (2,), said) for name, said in table.items()),
        Case("recipes", ["train", "--recipe", "recipes/small.yaml"], (0,), "model folder"),
        Case("recipes", ["train", "--recipe", "digit"], (2,), "no recipe 'digit'"),
        Case("recipes", ["train", "--recipe", "caf\udce9.yaml"], (2,), "caf\\udce9.yaml"),
        Case("recipes", ["train", "--recipe"], (2,), "--recipe needs a value"),
    ]


def _options() -> list[Case]:
    small = ["train", "--recipe", "recipes/small.yaml"]
    explain = ["explain", "images/good.png", "--model", "model"]
    audit = [
        "audit",
        "--model",
        "model",
        "--data",
        "folder:data/flat",
        "--methods",
        "evidence,centre",
        "--mosaics",
        "2",
    ]
    audit += ["--measures", "deletion", "--limit", "2", "--examples", "1"]
    return [
        Case("options", [], (0,), "commands:"),
        Case("options", ["--help"], (0,), "commands:"),
        Case("options", ["--version"], (0,), "patchconvnet 0"),
        *(
            Case("options", [name, "--help"], (0,), f"usage: patchconvnet {name}")
            for name in ("train", "evaluate", "explain", "audit", "models")
        ),
        Case("options", ["trian"], (2,), "Did you mean train?"),
        Case("options", ["\x1b[2J"], (2,), "\\x1b[2J"),
        Case("options", ["caf\udce9"], (2,), "unknown command"),
        Case("options", ["models", "x"], (2,), "x"),
        Case("options", ["models", "--x"], (2,), "unknown option --x"),
        Case("options", ["models"], (0,), "patchconvnet_b60.fb_in1k"),
        Case("options", ["explain"], (2,), "required: images"),
        Case("options", [*explain, "--taget", "a"], (2,), "Did you mean --target?"),
        Case("options", [*explain, "--target"], (2,), "--target needs a value"),
        Case("options", [*explain, "--target", "elephant"], (2,), "elephant"),
        Case("options", [*explain, "--target", "99"], (2,), "there is no class 99"),
        Case("options", [*explain, "--target", "\x1b[2J"], (2,), "\\x1b[2J"),
        Case("options", [*explain, "--target", "b"], (0,), "good"),
        Case("options", [*explain, "--size", "24"], (0,), "good"),
        Case("options", [*explain, "--size", "32x24"], (0,), "good"),
        Case("options", [*explain, "--size", "[32, 24]"], (0,), "good"),
        Case("options", [*explain, "--size", "0"], (2,), "size"),
        Case("options", [*explain, "--size", "1"], (2,), "size"),
        Case("options", [*explain, "--size=-5"], (2,), "size"),
        Case("options", [*explain, "--size", "100000"], (2,), "100000"),
        Case("options", [*explain, "--size", "1e9"], (2,), "--size: expected a whole number"),
        Case("options", [*explain, "--size", "big"], (2,), "--size: expected a whole number or two whole numbers"),
        Case("options", [*explain, "--size", "[1,2,3]"], (2,), "--size: expected"),
        Case("options", [*explain, "--refine", "1"], (0,), "good"),
        Case("options", [*explain, "--refine", "99"], (2,), "refine is 99"),
        Case("options", [*explain, "--refine=-1"], (2,), "refine is -1"),
        Case("options", [*explain, "--top", "0"], (2,), "top is 0"),
        Case("options", [*explain, "--top", "1000"], (0,), "good"),
        Case("options", [*explain, "--top", "12345678901234567890"], (0,), "good"),
        Case("options", [*explain, "--strict=perhaps"], (2,), "true or false"),
        Case("options", [*explain, "--out", "a_file"], (2,), "cannot write"),
        Case("options", [*explain, "--out", "a_file/below"], (2,), "cannot write"),
        Case("options", [*explain, "--out", "/proc/nowhere"], (2,), "cannot write"),
        Case("options", [*explain, "--out", "x\0y"], (2,), "cannot write"),
        Case("options", [*explain, "--out", "n" * 300], (2,), "cannot write"),
        *(
            Case("options", [*explain, "--device", name], (2,), name)
            for name in ("meta", "toaster", "cuda:99", "", "cpu:x")
        ),
        Case("options", [*explain, "-x"], (2,), "unknown option -x"),
        Case("options", ["explain", "--model", "model", "--", "images/-dash.png"], (0,), "-dash"),
        Case("options", [*explain, "--model"], (2,), "--model needs a value"),
        Case("options", [*small, "--epochs", "many"], (2,), "--epochs: expected a whole number, not many"),
        *(
            Case("options", [*small, f"--{name}", count], (2,), said)
            for count in ("1000000000", "1" + 30 * "0")
            for name, said in {
                "epochs": "epochs must be at most 100,000, not 10",
                "batch-size": "batch_size must be at most 1,000,000",
                "monitor.images": "monitor.images must be at most 1,000",
                "probe.views": "probe.views must be at most 1,000",
                "probe.queries": "probe.queries must be at most 10,000",
                "data.workers": "data.workers must be at most 1,024",
                "device-count": "devices must be at most 1,024",
                "nodes": "devices must be at most 1,024 and nodes 100,000",
                "threads": "give a number from 1 to 1024",
                "optimization.accumulate": "cannot be divided into",
                "augmentation.random_crop_padding": "random_crop_padding",
                "augmentation.canvas": "more than 64,000,000 pixels",
            }.items()
        ),
        *(
            Case("options", [*audit, "--methods", "evidence", f"--{name}", "1" + 20 * "0"], (2,), f"audit {name} is 1")
            for name in ("steps", "mosaics", "rise_masks", "gradient_steps", "batch_size", "forward_batch", "seed")
        ),
        *(
            Case(
                "options",
                ["export", "--model", "model", "--out", "x.onnx", f"--batch={count}"],
                (2,),
                "from 1 to 4,096",
            )
            for count in ("0", "-1", "1000000000", "1" + 30 * "0")
        ),
        Case("options", [*small, "--epochs", "1" + 5000 * "0"], (2,), "--epochs: expected a whole number"),
        Case("options", [*small, "--epochs", "1e3"], (2,), "--epochs: expected a whole number"),
        Case("options", [*small, "--seed", "12345678901234567890"], (2,), "seed"),
        Case("options", [*small, "--data.seed", "12345678901234567890"], (2,), "seed"),
        Case("options", [*small, "--data-seed=-4"], (2,), "seed"),
        Case("options", [*small, "--optimization.momentm", "1"], (2,), "Did you mean --optimization.momentum?"),
        Case(
            "options",
            [*small, "--optimization.learning_rate", "inf"],
            (2,),
            "--optimization.learning_rate: expected a number, not inf",
        ),
        Case("options", [*small, "--optimization.schedule", "cos"], (2,), "expected one of cosine, linear, not cos"),
        Case("options", [*small, "--optimization.optimizer", "adamq"], (2,), "adamq"),
        Case("options", [*small, "--preprocessing.size", "100000"], (2,), "100000"),
        Case("options", [*small, "--preprocessing.size", "16x"], (2,), "--preprocessing.size: expected"),
        Case("options", [*small, "--preprocessing.size", "12x16", "--batch-size", "256"], (0,), "12×16"),
        Case("options", [*small, "--preprocessing.size", "1"], (2,), "size"),
        Case("options", [*small, "--model", "resnext9000"], (2,), "resnext9000"),
        Case("options", [*small, "--model.options", "{}{"], (2,), "--model.options: expected pairs"),
        Case("options", [*small, "--model.options.depth", "x"], (2,), "depth"),
        Case("options", [*small, "--device", "toaster"], (2,), "toaster"),
        Case("options", [*small, "--device", "meta"], (2,), "meta"),
        Case("options", [*small, "--device-count", "0"], (2,), "devices"),
        Case("options", [*small, "--strategy", "magic"], (2,), "expected one of auto, ddp, fsdp, not magic"),
        Case("options", [*small, "--batch-size", "0"], (2,), "batch_size must be at least 1"),
        Case("options", [*small, "--out", "a_file"], (2,), "a_file is a file"),
        Case("options", [*small, "--out", "data"], (2,), "data"),
        Case("options", [*small, "--out", "a_file/x"], (2,), "cannot write"),
        Case("options", [*small, "--checkpoint-every", "sometimes"], (2,), "give a time such as 10min, 90s or 2h"),
        Case("options", [*small, "--checkpoint_every", "0 steps"], (2,), "checkpoint_every is '0 steps'"),
        Case("options", [*small, "--resume"], (2,), "nothing to resume"),
        Case("options", [*small, "--resume", "maybe"], (2,), "maybe"),
        Case("options", [*small, "--resume", "--out", "absent"], (2,), "nothing to resume"),
        Case("options", audit, (0,), "report.html"),
        Case("options", [*audit, "--methods", "magic"], (2,), "magic"),
        Case("options", [*audit, "--measures", "magic"], (2,), "magic"),
        Case("options", [*audit, "--limit", "0"], (2,), "limit is 0"),
        Case("options", [*audit, "--measures", "energy", "--masks", "absent"], (2,), "absent"),
        Case("options", [*audit, "--boxes", "images/good.png", "--measures", "pointing"], (2,), "good.png"),
        Case("options", [*audit, "--out", "a_file"], (2,), "a_file"),
        Case("options", [*audit, "--out", "carded", "--card"], (0,), "README.md"),
        Case("options", ["audit", "--model", "cifar10", "--data", "digits", "--card"], (2,), "'cifar10' is none"),
    ]


def _serving() -> list[Case]:
    serve = ["serve", "--port=0", "--model"]
    model = [*serve, "model"]
    return [
        Case("serving", ["serve"], (2,), "required: --model"),
        Case("serving", [*serve, ""], (2,), "there is no model"),
        Case("serving", [*serve, "nul\0"], (2,), "there is no model"),
        Case("serving", [*serve, "absent.onnx"], (2,), "absent.onnx"),
        Case("serving", [*serve, "images/good.png"], (2,), "good.png"),
        Case("serving", [*serve, "models/not_json"], (2,), "not_json"),
        Case("serving", [*serve, "models/empty"], (2,), "empty"),
        Case("serving", [*model, "--port", "65536"], (2,), "between 0 and 65535"),
        Case("serving", [*model, "--port", "http"], (2,), "--port: expected a whole number, not http"),
        Case("serving", [*model, "--host", "nul\0"], (2,), "cannot listen"),
        Case("serving", [*model, "--host", "a" * 300], (2,), "cannot listen"),
        Case("serving", [*model, "--host", "203.0.113.7"], (2,), "cannot listen at 203.0.113.7"),
        Case("serving", [*model, "--workers", "0"], (2,), "--workers is 0"),
        Case("serving", [*model, "--queue", "0"], (2,), "--queue is 0"),
        Case("serving", [*model, "--batch=-1"], (2,), "--batch is -1"),
        Case("serving", [*model, "--seconds", "nan"], (2,), "expected a number, not nan"),
        Case("serving", [*model, "--megabytes", "1e99"], (2,), "--megabytes is 1e+99"),
        Case("serving", [*model, "--token", "absent"], (2,), "there is no token file absent"),
        Case("serving", [*model, "--token", "data"], (2,), "cannot read the token file data"),
        Case("serving", [*model, "--token", "images/good.png"], (2,), "other characters than ASCII"),
        Case("serving", [*model, "--token", "images/empty.png"], (2,), "one word of at least 16 characters"),
        Case("serving", [*model, "--tokn", "x"], (2,), "Did you mean --token?"),
    ]


def _exported() -> list[Case]:
    explain = ["explain", "images/good.png"]
    files = {
        "foreign": "of another program", "cut": "is not an ONNX file that onnxruntime can read", "empty": "is not an ONNX file",
        "text": "is not an ONNX file", "image": "is not an ONNX file", "absent": "there is no file", "folder": "there is no file",
        "not_json": "damaged description", "number": "damaged description", "nested": "damaged description",
        "newer": "update the package", "incomplete": "damaged description", "wrong_type": "damaged description",
    }  # fmt: skip
    export = ["export", "--model=model"]
    options = [
        (["--precision=int4"], "--precision: expected one of fp32, fp16, int8"),
        (["--precision=int8"], "--calibration"),
        (["--precision=int8", "--calibration=data/empty"], "no images in"),
        (["--data=digits"], "add --precision int8"),
        (["--to=tensorflow"], "--to: expected one of"),
        (["--size=1"], "give at least that"),
        (["--size=0"], "two whole numbers"),
        (["--batch=0"], "--batch is 0"),
        (["--batch=-3"], "--batch is -3"),
        (["--preprocessing=above"], "expected one of outside, inside"),
        (["--evidence=some"], "it must be auto, all, none"),
        (["--evidence=1"], "comes for all 2 classes at once"),
        (["--images=images/text.jpg"], "not a readable image"),
        (["--images=nowhere"], "no image or folder"),
        (["--out=data"], "is a folder"),
        (["--out=a_file/m.onnx"], "cannot write"),
        (["--out=/proc/m.onnx"], "cannot write"),
        (["--out=nul\0.onnx"], "cannot write"),
    ]
    return [
        *(
            Case("exported", [*explain, f"--model=exported/{name}.onnx", "--only=json"], (2,), said)
            for name, said in files.items()
        ),
        *(
            Case("exported", ["evaluate", f"--model=exported/{name}.onnx", "--data=digits"], (2,), said)
            for name, said in files.items()
        ),
        *(Case("exported", [*export, *words], (2,), said) for words, said in options),
        Case("exported", ["export", "--model=model"], (2,), "required: --out"),
        Case("exported", ["export", "--model=exported/foreign.onnx"], (2,), "of another program"),
        Case("exported", ["export", "--model=nowhere"], (2,), "there is no model"),
    ]


def _plans() -> list[Case]:
    plan = ["plan", "--model=patchconvnet_micro", "--images=100", "--size=32", "--classes=2", "--batch-size=4"]
    refused = [
        (["--hardware=toaster"], "known: cpu, epyc, h100"),
        (["--hardware="], "unknown hardware"),
        (["--hardware=0xcpu"], "0 devices"),
        (["--hardware=3xcpu"], "cannot be divided over 3 devices"),
        (["--images=0"], "--images is 0"),
        (["--classes=-1"], "--classes is -1"),
        (["--price=-1"], "--price is -1"),
        (["--price=nan"], "expected a number"),
        (["--batch-size=0"], "batch_size must be at least 1"),
        (["--size=0"], "size"),
        (["--precision=int4"], "one of auto"),
        (["--model=resnext9000"], "resnext9000"),
        (["--threads=0"], "threads is 0"),
        (["--recipe=absent"], "absent"),
        (["--data=digits"], "either --data or --images"),
        (["--hardwear=cpu"], "Did you mean --hardware?"),
    ]
    return [
        Case("plan", [*plan, "--hardware=2xcpu"], (0,), "unchecked"),
        Case("plan", ["plan", "--recipe=digits", "--data=digits"], (0,), "an epoch of"),
        Case("plan", ["plan"], (2,), "needs --model or --recipe"),
        Case("plan", ["plan", "--model=patchconvnet_micro"], (2,), "either --data or --images"),
        *(Case("plan", [*plan, *words], (2,), said) for words, said in refused),
    ]


def _bulk() -> list[Case]:
    predict = ["predict", "--model=model"]
    on_images = [*predict, "--data=images"]
    refused = [
        (["--top=0"], "--top is 0"),
        (["--top", "1" + 20 * "0"], "must be from 1 to 1,000"),
        (["--part-size=0"], "--part-size is 0"),
        (["--part-size=1" + 20 * "0"], "from 1 to 10,000,000"),
        (["--readers=0"], "--readers is 0"),
        (["--readers=1000000000"], "from 1 to 1,024"),
        (["--actors=-1"], "--actors is -1"),
        (["--max-bad=many"], "max_bad is 'many'"),
        (["--max-bad=1", "--engine=ray"], "--max-bad is for --engine local"),
        (["--threads=0"], "threads is 0"),
        (["--maps=both"], "one of none, attention, evidence"),
        (["--engine=spark"], "one of local, ray"),
        (["--embedding-dtype=int8"], "one of float16, float32"),
        (["--embeddings=perhaps"], "true or false"),
        (["--size=1"], "size"),
        (["--device=toaster"], "toaster"),
        (["--split=tset"], "one of auto, train"),
        (["--out=a_file"], "cannot write to"),
        (["--out=a_file/x"], "cannot write to"),
        (["--out=x\0y"], "cannot write to"),
        (["--out=/proc/nowhere"], "cannot write"),
        (["--enginee=ray"], "Did you mean --engine?"),
    ]
    data = {
        "absent": "unknown dataset", "folder:absent": "there is no folder", "folder:": "names no folder", "": "there is no data",
        "nul\0": "there is no data", "a_file": "unknown dataset", "folder:a_file": "is a file", "data/empty": "no images in",
        "digit": "Did you mean", "csv:absent.csv": "there is no file", "csv:images/random.png": "images/random.png",
        "wds:images/text.jpg": "no tar file", "parquet:data/flat": "no Parquet files in", "litdata:absent": "there is no folder", "csv:a_file": "has no column 'image'",
    }  # fmt: skip
    return [
        Case("bulk", on_images, (0,), "could not be predicted"),
        Case("bulk", [*on_images, "--maps=evidence", "--embeddings"], (0,), "could not be predicted"),
        Case("bulk", [*predict, "--data=data/flat", "--part-size=5"], (0,), "12 images in 3 files"),
        Case("bulk", [*predict, "--data=folder:data/split", "--split=test"], (0,), "images in 1 files"),
        *(Case("bulk", [*predict, "--data=data/flat", *words], (2,), said) for words, said in refused),
        *(Case("bulk", [*predict, f"--data={name}"], (2,), said) for name, said in data.items()),
        Case("bulk", ["predict", "--data=images"], (2,), "required: --model"),
        Case("bulk", ["review"], (2,), "required: --predictions"),
        Case(
            "bulk",
            ["audit", "--predictions=absent", "--model=cifar10", "--data=folder:data/flat"],
            (2,),
            "give --boxes or",
        ),
        Case("bulk", ["audit", "--predictions=absent", "--data=digits"], (2,), "required: --model"),
        Case("bulk", ["review", "--predictions=absent"], (2,), "holds no predictions"),
        Case("bulk", ["review", "--predictions=a_file"], (2,), "a_file"),
        Case("bulk", ["review", "--predictions=nul\0"], (2,), "nul"),
        Case("bulk", ["review", "--predictions=absent", "--count=0"], (2,), "count is 0"),
        Case("bulk", ["predict", "--model=nul\0", "--data=images"], (2,), "there is no model"),
        Case("bulk", ["predict", "--model=models/empty", "--data=images"], (2,), "empty"),
        Case("bulk", ["predict", "--model=exported/cut.onnx", "--data=images"], (2,), "is not an ONNX file"),
        Case("bulk", ["evaluate", "--predictions=absent"], (2,), "holds no predictions"),
        Case("bulk", ["evaluate", "--predictions=a_file"], (2,), "cannot be read"),
        Case("bulk", ["evaluate", "--predictions"], (2,), "--predictions needs a value"),
        Case("bulk", ["evaluate", "--predictions=absent", "--model=model"], (2,), "unknown option --model"),
    ]


CASES = [*_images(), *_data(), *_models(), *_recipes(), *_options(), *_serving(), *_exported(), *_bulk(), *_plans()]
