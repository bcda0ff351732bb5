# The page and the HTTP interface of `kithkin serve`, on a CPU:
#
#     docker build -t kithkin:cpu .
#     docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 kithkin:cpu
#
# Options of `kithkin serve` come after the image's name. There is no password and no encryption: publish the port on
# 127.0.0.1, or behind a proxy that has both.

FROM python:3.11-bookworm AS build
WORKDIR /source
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY src src
ENV KITHKIN_KERNELS=all PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/kithkin && /opt/kithkin/bin/pip install -c constraints.txt ".[web]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/kithkin /opt/kithkin
USER 65534:65534
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["/opt/kithkin/bin/kithkin", "serve", "--host", "0.0.0.0"]
