//go:build tools

// Package tools pins the packages that the cluster in a box compiles (see tests/src/cluster/tools.rs).
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
)
