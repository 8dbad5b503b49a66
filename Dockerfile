# Two images from one file: `service` (cache service, billing, gateway; no torch) and `worker`.
FROM python:3.11-slim-bookworm AS base
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./

FROM base AS build-service
COPY proto proto
COPY cache_service cache_service
COPY storage storage
COPY billing billing
COPY journal journal
COPY gateway gateway
COPY worker worker
RUN pip install --no-cache-dir -c constraints.txt .

FROM build-service AS build-worker
RUN pip install --no-cache-dir -c constraints.txt '.[worker]'

FROM python:3.11-slim-bookworm AS runtime
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HOME=/tmp
RUN useradd --uid 10001 --no-create-home kvtier \
 && mkdir -p /data /models /run/kvtier /tls \
 && chown kvtier:kvtier /data /models /run/kvtier /tls
USER kvtier

FROM runtime AS service
COPY --from=build-service /venv /venv

FROM runtime AS worker
COPY --from=build-worker /venv /venv
