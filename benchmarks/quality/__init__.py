"""Models against their bars, next to the libraries that the field trusts: ``recserve bench quality``."""
