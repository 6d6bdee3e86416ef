//go:build tools

// Package tools pins the packages that the cluster in a box compiles.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
)
