"""The only code that knows the network: the gRPC server over an engine."""
