"""A Hugging Face Space: an image's likeliest classes, and the parts of it that speak for them.

Runs here too: pip install 'patchconvnet[imagenet]' gradio; python examples/space/app.py
"""

import os

import gradio as gr
from PIL import Image

from patchconvnet import UserError, explain, load

MODEL = os.environ.get("MODEL", "imagenet")  # or a model folder, or a hub id (owner/name)
network = load(MODEL)


def answer(image: Image.Image | None, target: str, kind: str) -> tuple[dict[str, float], Image.Image]:
    """The likeliest classes, and the map over the image."""
    if image is None:
        raise gr.Error("Give an image first.")
    try:
        explanation = explain(network, image, target=target.strip() or None)
        return {one.name: one.probability for one in explanation.top_classes(5)}, explanation.attended(map=kind)
    except UserError as error:
        raise gr.Error(str(error)) from error


demo = gr.Interface(
    answer,
    inputs=[
        gr.Image(type="pil", sources=["upload", "webcam", "clipboard"], label="Image"),
        gr.Textbox(label="Class to ask about", placeholder="the likeliest one"),
        gr.Radio(["auto", "attention", "evidence", "contrast"], value="auto", label="Map"),
    ],
    outputs=[gr.Label(label="Classes"), gr.Image(label="Why")],
    title="What is it, and why?",
    description=f"{MODEL}: {network.num_classes:,} classes. Red parts speak for the class, blue parts against it; "
    "attention is the brighter the more a part counted.",
    flagging_mode="never",
    api_name="answer",
)

if __name__ == "__main__":
    demo.launch()
