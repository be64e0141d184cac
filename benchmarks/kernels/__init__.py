"""Exact top-K search against its peers and the limits of the machine: ``recserve bench kernels``."""
