# Images for `infnet-rec launch --as k8s` and for torchx. Both stages take the versions that requirements.txt and the
# Makefile pin, and are made by the Makefile's own steps:
#
#   docker build --target cpu --tag infnet-rec:cpu .
#   docker build --target cuda --tag infnet-rec:cuda .
#
# Another package index is pip's own affair: --build-arg PIP_INDEX_URL=...

FROM python:3.11-slim AS source
# Triton compiles a small C file for each kernel when it is first launched.
RUN apt-get update && apt-get install --yes --no-install-recommends make gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/infnet-rec
COPY Makefile pyproject.toml requirements.txt README.md LICENSE ./
COPY infnet_rec infnet_rec
COPY launch launch
ARG PIP_INDEX_URL
ARG PIP_NO_CACHE_DIR=1

FROM source AS cpu
RUN make runtime DEVICE=cpu
COPY configs configs
ENV PATH=/opt/infnet-rec/.venv/bin:$PATH
# A run directory must outlive its container: mount something here, and start the command here.
WORKDIR /runs
CMD ["infnet-rec", "doctor"]

# The driver comes from the host; torch's own wheels bring the rest of CUDA.
FROM source AS cuda
RUN make runtime DEVICE=cuda
COPY configs configs
ENV PATH=/opt/infnet-rec/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /runs
CMD ["infnet-rec", "doctor"]
