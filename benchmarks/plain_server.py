"""What benchmarks/serving.py compares with: the server that people write today, FastAPI with PyTorch and Grad-CAM.

    python benchmarks/plain_server.py --port 8081

One handler decodes, runs the network and pytorch-grad-cam, and answers; its map is cut down to 7 × 7, which spares it
the writing of 224 × 224 numbers. The network is the one of `patchconvnet serve --model imagenet`.
"""

import argparse
import io

import timm
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.data import create_transform, resolve_data_config

import patchconvnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8081)
    uvicorn.run(application(), port=parser.parse_args().port, log_level="warning")


def application() -> FastAPI:
    """The whole server."""
    network = patchconvnet.load("imagenet").eval()
    transform = create_transform(
        **resolve_data_config(timm.get_pretrained_cfg(network.config.backbone).to_dict()), is_training=False
    )
    cam = GradCAM(model=network, target_layers=[network.backbone.bn2])
    app = FastAPI()

    @app.post("/explain")
    async def explain(image: UploadFile) -> dict:
        batch = transform(Image.open(io.BytesIO(await image.read())).convert("RGB"))[None]
        with torch.no_grad():
            probabilities = network(batch)[0].softmax(0)
        top = probabilities.topk(5)
        maps = cam(input_tensor=batch, targets=[ClassifierOutputTarget(int(top.indices[0]))])
        return {
            "classes": [
                {"name": network.class_names[int(k)], "probability": float(p)}
                for p, k in zip(top.values, top.indices, strict=True)
            ],
            "map": maps[0, 16::32, 16::32].tolist(),
        }

    return app


if __name__ == "__main__":
    main()
