# A server for an exported model, without PyTorch: not root, nothing writable but /tmp.
#
#   patchconvnet export --model imagenet --to onnx --preprocessing inside --out model.onnx
#   docker build --tag patchconvnet .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     --publish 8080:8080 --volume "$PWD/model.onnx:/model.onnx:ro" patchconvnet
#
# tests/deploy/test_containers.py runs its RUN steps in a plain environment and asks the server.

FROM python:3.12-slim AS build
WORKDIR /build
COPY examples/docker/requirements.txt examples/docker/
RUN python -m venv /venv
RUN /venv/bin/pip install --no-cache-dir --requirement examples/docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /venv/bin/pip install --no-cache-dir hatchling && /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["patchconvnet", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["--model", "/model.onnx"]
