# Trains, exports and serves on CPUs:
#   docker build -t plsc .
#   docker run --rm --shm-size 2g --user "$(id -u):$(id -g)" -v "$PWD:/work" plsc demo --size small
# Ranks and data readers share memory, of which a container has 64 MiB without --shm-size. The image has the code of this
# checkout, at any commit; EXTRAS are those of pyproject.toml.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim
ARG EXTRAS=cpu,demo,report,serve,gallery,onnx,remote,tensorboard
# OpenMP's library, which Paddle's wheel does not bring.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/plsc-*.whl)[${EXTRAS}]" && rm -r /wheels
# Any user may run it, and has a folder for what libraries keep.
ENV HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["plsc"]
CMD ["--help"]
