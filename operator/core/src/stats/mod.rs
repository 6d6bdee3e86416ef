//! Sequential statistics: e-processes for bounded means, shares, and block votes; restart mixtures; histograms.
