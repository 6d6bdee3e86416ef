# syntax=docker/dockerfile:1
# Image of `inference-worker`: docker build -f images/inference-worker.Dockerfile --build-arg RUST_IMAGE=rust:1.95-trixie@sha256:… .
# The compiler's image has no default, so that nobody builds from a tag that moves: give the digest that you have checked.
ARG RUST_IMAGE

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
ENV CARGO_INCREMENTAL=0
RUN cargo build --release --locked --workspace --bins \
 && strip target/release/inference-worker \
 && images/rootfs.sh target/release/inference-worker /rootfs

# No base image: no shell, no package manager, nothing to patch but the program and the libraries that it came with.
FROM scratch
COPY --from=build /rootfs/ /
ENV PATH=/usr/local/bin:/usr/bin:/bin
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/inference-worker"]
LABEL org.opencontainers.image.source="https://github.com/bitnet-rollouts/bitnet-rollouts" \
      org.opencontainers.image.licenses="Apache-2.0"
