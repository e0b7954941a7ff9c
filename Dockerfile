# stedm on the CPU or, with the NVIDIA container toolkit (`docker run --gpus all`), on a GPU.
#   docker build -t stedm .
#   docker run --rm -v "$PWD:/here" stedm demo --size smoke --out runs/demo
# Written by the rules of the format and linted with hadolint; not built on the machine it was written on.
FROM python:3.12-slim

# The one system library that the wheels do not bring: OpenMP's runtime.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/stedm
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir . \
    && useradd --create-home --uid 1000 stedm

USER 1000
WORKDIR /here
ENTRYPOINT ["stedm"]
CMD ["--help"]
