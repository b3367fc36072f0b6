// The camera: frames one after the other, the next one when the answer to the last has been drawn.

import { byId } from "./elements.js";
import { Sentence } from "./images.js";
import { newCanvas } from "./maps.js";

const LONGEST_SIDE = 480; // of a frame; networks read 224 pixels and fewer

class Camera {
  #video;
  #stream = null;
  #device = null;

  constructor(video) {
    this.#video = video;
  }

  get on() {
    return this.#stream !== null;
  }

  /** Open the camera, or with `next` another one where there are several. */
  async start(next = false) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Sentence(
        "The camera is not available here: browsers give it to https:// addresses and to localhost only.",
      );
    }
    const cameras = next
      ? (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput")
      : [];
    const at = cameras.findIndex((one) => one.deviceId === this.#device);
    const chosen =
      cameras.length > 1
        ? { deviceId: { exact: cameras[(at + 1) % cameras.length].deviceId } }
        : { facingMode: "environment" };
    this.stop();
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { ...chosen, width: { ideal: 640 }, height: { ideal: 480 } },
      });
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      throw new Sentence(
        refused
          ? "The camera was refused; allow it for this site in the browser's settings."
          : "There is no camera that this browser can use.",
      );
    }
    this.#device = this.#stream.getVideoTracks()[0].getSettings().deviceId;
    this.#video.srcObject = this.#stream;
    await this.#video.play();
  }

  /** The frame of this moment, or null before the first. */
  frame() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    if (!width) return null;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    const canvas = newCanvas(Math.round(height * scale), Math.round(width * scale));
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(this.#video, 0, 0, canvas.width, canvas.height);
    return { canvas, name: "camera", blob: null, live: true };
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.srcObject = null;
  }
}

export const camera = new Camera(byId("video"));
