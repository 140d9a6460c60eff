# The environments as an OpenEnv server (docs/environments.md): no trainer, no torch.
#
#   docker build --file containers/openenv.Dockerfile --tag paw-openenv .          from the top of the checkout
#   docker run --publish 127.0.0.1:8000:8000 paw-openenv alfworld games=generated --panel valid_seen --sessions 256
#
# What follows the image's name is the server's own command line. Data of the host are seen where a mount and PAW_DATA say so; a key file is the
# user's own, mode 0600, so the container runs as that user:
#
#   docker run --user $(id -u) --volume ~/.paw/key:/key:ro ... paw-openenv webshop --panel test --key-file /key
#
# BASE and the folder `pip` are those of containers/Dockerfile (containers/README.md).
ARG BASE=docker.io/library/debian:bookworm

FROM scratch AS pip

FROM ${BASE} AS built
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3 python3-venv python3-dev g++ make ca-certificates
WORKDIR /opt/paw
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md CITATION.cff source/
COPY slurm source/slurm
COPY recipes source/recipes
COPY paw_hpc source/paw_hpc
ARG BENCHMARKS=alfworld,webshop,search
# OpenEnv asks for older packages than constraints.txt has: pip chooses. Fast Downward's build calls `python`.
RUN --mount=type=bind,from=pip,target=/pip python3 -m venv .venv && export PATH=/opt/paw/.venv/bin:$PATH PIP_CONFIG_FILE=/pip/pip.conf \
 && pip install --no-cache-dir "./source[openenv,$BENCHMARKS]"

FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=built /opt/paw/.venv /opt/paw/.venv
# Whoever it runs as: the cache is in a folder that everybody may write.
ENV PATH=/opt/paw/.venv/bin:$PATH PAW_CACHE=/tmp/paw HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 65534
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python3", "-m", "paw_hpc.envs.openenv", "--host", "0.0.0.0"]
CMD ["alfworld", "games=generated", "--panel", "valid_seen", "--sessions", "64"]
