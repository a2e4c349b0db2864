# The service in one image, CPU by default.
#
#   docker build -t reward-service:cpu .
#   docker build -t reward-service:cuda --build-arg VARIANT=cuda .
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -e REWARD_API_KEYS reward-service:cpu
#   docker run --read-only --tmpfs /tmp:exec --gpus all -p 127.0.0.1:8000:8000 -e REWARD_API_KEYS \
#       reward-service:cuda
#
# /tmp is the one place that is written to: downloads of `hf:` models, and on CUDA the compiled kernels. Those are
# shared objects, and a tmpfs is mounted noexec unless told otherwise. A volume at /tmp/huggingface keeps the downloads.
#
# Build arguments
#   VARIANT   cpu | cuda.
#   MODELS    baked: models/trunk, models/safety and models/helpfulness become part of the image.
#             none: they do not; mount a directory that holds all three at /srv/reward-service/models.
#   EXTRAS    comma-separated extras of the package to install as well, such as ui,otel.
#   TORCH     the requirement to install in place of the variant's own, for an index that labels its wheels otherwise.
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL   pip's own: a mirror, or the index of the CPU or CUDA wheels of your choice.
#   REVISION  the commit, for the label.

FROM python:3.11-slim AS build
ARG VARIANT=cpu
ARG TORCH=
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Without pip: nothing in the finished image installs anything, and no scanner has to look at it.
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt ./

# torch alone and first, so that another dependency's change does not fetch it again. On Linux x86-64 the build that pip
# finds by itself is the CUDA one: several gigabytes that a CPU never runs. The CPU build has a version label of its
# own, which pip finds only where an index or a wheel folder of yours offers it; otherwise uv fetches it, since uv knows
# where PyTorch keeps it.
RUN set -eu; \
    pinned=$(grep '^torch==' constraints.txt); \
    case "$VARIANT" in \
    cpu) \
        pip --python /opt/venv/bin/python install --constraint constraints.txt "${TORCH:-$pinned+cpu}" \
        || { test -z "$TORCH" \
            && pip install uv==0.13.9 \
            && uv pip install --python /opt/venv --no-cache --compile-bytecode \
                --torch-backend cpu --constraint constraints.txt "$pinned"; } ;; \
    cuda) \
        pip --python /opt/venv/bin/python install --constraint constraints.txt "${TORCH:-$pinned}" ;; \
    *) \
        echo "VARIANT is '$VARIANT'; give cpu or cuda" >&2; exit 1 ;; \
    esac

# The dependencies before the code, so that an edit of the code installs nothing again.
ARG EXTRAS=
RUN set -eu; \
    EXTRAS="$EXTRAS" python -c 'import os, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = [name.strip() for name in os.environ["EXTRAS"].split(",") if name.strip()]; \
known = project["optional-dependencies"]; \
unknown = [name for name in extras if name not in known]; \
unknown and exit(f"EXTRAS has {unknown[0]}; there are {sorted(known)}"); \
print(*project["dependencies"], *[each for name in extras for each in known[name]], sep="\n")' > requirements.txt; \
    pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement requirements.txt; \
    if [ "$VARIANT" = cpu ]; then \
        # torch's own test programs and C++ headers: a quarter of it, and nothing on a CPU reads them
        torch=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib") + "/torch")'); \
        find "$torch/bin" -mindepth 1 ! -name torch_shm_manager -delete; \
        rm -rf "$torch/include" "$torch/test"; \
    fi; \
    found=$(/opt/venv/bin/python -c 'import torch; print("cuda" if torch.version.cuda else "cpu")'); \
    [ "$found" = "$VARIANT" ] || { \
        echo "VARIANT is $VARIANT, but this torch is for $found; give TORCH and PIP_EXTRA_INDEX_URL" >&2; exit 1; }

COPY README.md LICENSE ./
COPY app ./app
COPY reward_client ./reward_client
RUN pip --python /opt/venv/bin/python install --constraint constraints.txt --no-deps .


FROM python:3.11-slim AS models
ARG MODELS=baked
COPY models /models
# Whatever umask they were written under, the service's user reads them and does not write them.
RUN case "$MODELS" in \
    baked) chmod -R a+rX,go-w /models ;; \
    none) rm -rf /models/* ;; \
    *) echo "MODELS is '$MODELS'; give baked or none" >&2; exit 1 ;; \
    esac


FROM python:3.11-slim
ARG VARIANT=cpu
# flex_attention is compiled on the GPU's machine: Triton builds its launchers with a C compiler and Python's headers,
# which the base image has.
RUN if [ "$VARIANT" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN groupadd --gid 10001 reward \
    && useradd --uid 10001 --gid reward --no-create-home --home-dir /tmp --shell /usr/sbin/nologin reward
# The models are found in the working directory.
WORKDIR /srv/reward-service
COPY --from=models /models ./models
COPY --from=build /opt/venv /opt/venv

# A container's loopback cannot be reached from outside, hence 0.0.0.0: who may reach the service is decided where the
# port is published. It warns at start where it has no API key.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    REWARD_HOST=0.0.0.0 \
    REWARD_PORT=8000

ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="reward-service" \
      org.opencontainers.image.description="Llama 2 style rewards over HTTP for RL trainers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Not urllib, which would ask a proxy from the environment. It follows REWARD_PORT; a --port flag it cannot see.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['REWARD_PORT']), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["reward-service"]
CMD ["serve"]
