"""Every form of the network beside its peers, measured: `python -m benchmarks` from the repository's root."""
