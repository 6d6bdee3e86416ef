//! Lints for plans: what no plan may ever ask for.
