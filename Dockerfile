# Bases are pinned to a release. To pin one to its very bytes, ask for its digest and append it:
#   docker buildx imagetools inspect debian:12.11-slim     ->  debian:12.11-slim@sha256:…
ARG BUILD_IMAGE=rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=debian:12.11-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /portcullis
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/portcullis/target \
    cargo build --locked --release --bin portcullis \
    && install -D -m 0755 target/release/portcullis /out/portcullis \
    && install -d -m 0700 /out/state

FROM ${RUNTIME_IMAGE}
# For `tls.ca = "system"`; the runtime base brings no certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/portcullis /usr/local/bin/portcullis
# For certificates by ACME: put a volume here, which takes over its owner.
COPY --from=build --chown=65532:65532 --chmod=0700 /out/state /var/lib/portcullis
USER 65532:65532
WORKDIR /etc/portcullis
EXPOSE 80 443 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s --start-period=2s --retries=3 \
    CMD ["/usr/local/bin/portcullis", "healthcheck", "--admin", "127.0.0.1:9090"]
# Exec form: Portcullis is process 1 and gets SIGTERM itself, so that it drains.
ENTRYPOINT ["/usr/local/bin/portcullis"]
CMD ["run", "--config", "/etc/portcullis/portcullis.toml"]
