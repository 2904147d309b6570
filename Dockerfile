# The server in a container. The models come from outside:
#   docker build -t nextdetr-serve .
#   docker run --rm -p 8000:8000 -e NEXTDETR_API_KEY=... -v "$PWD/exports:/models:ro" nextdetr-serve /models/cells/model.onnx
FROM python:3.11-slim

ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
# The light installation: exported files, in ONNX Runtime or OpenVINO; a checkpoint would need the extra train, and torch.
RUN pip install '.[serve,openvino]'

RUN useradd --create-home --uid 1000 nextdetr
USER nextdetr
WORKDIR /home/nextdetr
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
# Others reach a container, so that it asks for a key: NEXTDETR_API_KEY, or --api-key-file with a mounted file.
ENTRYPOINT ["nextdetr", "serve", "--host", "0.0.0.0", "--port", "8000"]
