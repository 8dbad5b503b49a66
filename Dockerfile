# Two images from one file: `service` (cache service, billing, gateway, Mooncake's master; no torch)
# and `worker`, whose EXTRAS are "worker,gpu" beside a GPU.
FROM python:3.11-slim-bookworm AS base
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./

FROM base AS source
COPY proto proto
COPY cache_service cache_service
COPY storage storage
COPY billing billing
COPY journal journal
COPY gateway gateway
COPY worker worker

FROM source AS build-service
RUN pip install --no-cache-dir -c constraints.txt '.[postgres,shared,mooncake]'

FROM source AS build-worker
ARG EXTRAS=worker
RUN pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim-bookworm AS runtime
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HOME=/tmp
RUN useradd --uid 10001 --no-create-home kvtier \
 && mkdir -p /data /models /run/kvtier \
 && chown kvtier:kvtier /data /models /run/kvtier
USER kvtier

FROM runtime AS service
# What Mooncake's library is linked to; and where `setup` writes, one volume for each who reads.
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends libcurl4 libibverbs1 libnuma1 \
 && rm -rf /var/lib/apt/lists/* \
 && for name in authority gateway worker cache billing postgres grafana; do \
      install -d -o kvtier -g kvtier "/setup/$name"; \
    done
USER kvtier
COPY --from=build-service /venv /venv

FROM runtime AS worker
COPY --from=build-worker /venv /venv
