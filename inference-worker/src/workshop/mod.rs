//! The workshop: text, training, distillation, damage, probes.
