//! The engine: one thread that owns the model, batches sequences, and keeps the clock.
