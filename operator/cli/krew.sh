#!/bin/sh
# Writes the krew manifest of a release to standard output, from its archives:
#   krew.sh v0.1.0 https://github.com/bitnet-rollouts/bitnet-rollouts/releases/download/v0.1.0 dist/kubectl-bitnet_*.tar.gz
# An archive is called kubectl-bitnet_OS_ARCH.tar.gz (linux or darwin, amd64 or arm64) and holds kubectl-bitnet and LICENSE.
set -eu
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
version=$1 base=${2%/}
shift 2
case $version in v[0-9]*.[0-9]*.[0-9]*) ;; *) echo "error: the version must be like v1.2.3, it is $version" >&2; exit 2 ;; esac
case $base in https://*) ;; *) echo "error: archives must be fetched by https: $base" >&2; exit 2 ;; esac
cat <<END
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: bitnet
spec:
  version: $version
  homepage: https://github.com/bitnet-rollouts/bitnet-rollouts
  shortDescription: Watch, steer and explain rollouts of BitNet models
  description: |
    Shows where a rollout of a BitNet model beside its fp16 baseline stands and what it waits for, steers it
    (promote, pause, abort, rollback, retry, undo), tells in words why a verdict was given, and says from files
    what a rollout will do before it runs.
  caveats: |
    The cluster needs the operator of BitNet Rollouts. To complete names of rollouts:
      kubectl bitnet completions kubectl > ~/.local/bin/kubectl_complete-bitnet
      chmod +x ~/.local/bin/kubectl_complete-bitnet
  platforms:
END
for archive in "$@"; do
  file=${archive##*/}
  platform=${file#kubectl-bitnet_}
  platform=${platform%.tar.gz}
  os=${platform%_*} arch=${platform#*_}
  case $file:$os:$arch in
    kubectl-bitnet_*.tar.gz:linux:amd64 | kubectl-bitnet_*.tar.gz:linux:arm64 | kubectl-bitnet_*.tar.gz:darwin:amd64 | kubectl-bitnet_*.tar.gz:darwin:arm64) ;;
    *) echo "error: $archive is not called kubectl-bitnet_OS_ARCH.tar.gz" >&2; exit 2 ;;
  esac
  names=$(tar -tzf "$archive")
  for name in kubectl-bitnet LICENSE; do
    printf '%s\n' "$names" | grep -qx "\(\./\)\?$name" || { echo "error: $archive holds no $name" >&2; exit 1; }
  done
  digest=$(sha256sum "$archive")
  cat <<END
  - selector:
      matchLabels: {os: $os, arch: $arch}
    uri: $base/$file
    sha256: ${digest%% *}
    bin: kubectl-bitnet
END
done
