"""The online half of recserve: load a bundle and answer requests, embedded or behind gRPC."""
