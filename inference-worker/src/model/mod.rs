//! Model formats, the loader, and the one forward pass that serving and training tools share.
