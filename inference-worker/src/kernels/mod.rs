//! Vector kernels, chosen at run time; each has a portable twin that it must equal.
