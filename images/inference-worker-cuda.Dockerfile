# syntax=docker/dockerfile:1
# Image of `inference-worker` with the GPU backend, for nodes with and without a GPU: docker build
# -f images/inference-worker-cuda.Dockerfile --build-arg RUST_IMAGE=rust:1.95-trixie@sha256:…
# --build-arg CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:… .
# The images of compiler and toolkit have no default, so that nobody builds from a tag that moves: give the digests that you
# have checked. Of the toolkit's nothing but nvcc's work, the kernels, is in the result.
ARG RUST_IMAGE
ARG CUDA_IMAGE

FROM ${CUDA_IMAGE} AS toolkit

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY --from=toolkit /usr/local/cuda/ /usr/local/cuda/
COPY . .
ENV CARGO_INCREMENTAL=0 CUDA_HOME=/usr/local/cuda
RUN cargo build --release --locked --workspace --bins --features inference-worker/cuda \
 && strip target/release/inference-worker \
 && images/rootfs.sh target/release/inference-worker /rootfs

# No base image: no shell, no package manager. The driver's libraries come from the node, by the NVIDIA container toolkit.
FROM scratch
COPY --from=build /rootfs/ /
ENV PATH=/usr/local/bin:/usr/bin:/bin
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/inference-worker"]
LABEL org.opencontainers.image.source="https://github.com/bitnet-rollouts/bitnet-rollouts" \
      org.opencontainers.image.licenses="Apache-2.0"
