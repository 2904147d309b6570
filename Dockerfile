# The server in a container. The models come from outside, as does the key:
#   docker build -t nextdetr-serve .
#   export NEXTDETR_API_KEY=$(openssl rand -hex 16)
#   docker run --rm -p 8000:8000 --stop-timeout 40 -e NEXTDETR_API_KEY -v "$PWD/exports:/models:ro" nextdetr-serve /models/cells/model.onnx
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
# Asked directly: urllib would ask the proxy that Docker's own settings may name.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=5); c.request('GET', '/ready'); exit(c.getresponse().status != 200)"]
# Others reach a container, so that it asks for a key: NEXTDETR_API_KEY, or --api-key-file with a mounted file.
ENTRYPOINT ["nextdetr", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--help"]
