# The service on CPUs, with the demonstration model: docker build -t fusioner-rt .   (docs/serve.md, "Containers")
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
# An environment without pip: nothing is installed once it runs. Compiled here, as its files are read-only later.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/fusioner-rt && \
    python -m pip --python /opt/fusioner-rt/bin/python install --compile -c constraints.txt '.[cpu,serve]' ./models/demo

FROM python:3.11-slim-bookworm
COPY --from=build /opt/fusioner-rt /opt/fusioner-rt
ENV PATH=/opt/fusioner-rt/bin:$PATH \
    FUSIONER_CACHE=/cache
# The one folder that it writes to is its user's: word vectors, kept over restarts by a volume.
RUN useradd --no-log-init --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin fusioner && \
    install -d -o fusioner -g fusioner /cache
# By number: what checks that it is not root knows no names.
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8080
# Not by urllib, which would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
# No shell between: SIGTERM reaches the service, which finishes what is in flight.
ENTRYPOINT ["fusioner-rt"]
CMD ["serve", "--host", "0.0.0.0"]
