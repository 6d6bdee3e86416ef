//go:build tools

// Package tools pins the packages that the cluster in a box compiles (see tests/src/cluster/tools.rs).
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubelet"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "github.com/envoyproxy/gateway/cmd/envoy-gateway"
	_ "github.com/coredns/coredns"
	_ "helm.sh/helm/v4/cmd/helm"
)
