"""``inference.GRPCInferenceService``: the Open Inference Protocol, version 2, with Triton's extensions.

Clients of Triton and KServe ask unchanged; a client's own batch is spread over the dynamic batcher's.

- Model: the name is the bundle's ``model``, as in the metrics; the version is the bundle's version, and empty
  means the one that is served.
- Input ``user_id`` BYTES [n, 1] (empty: nobody known) and optional ``history`` BYTES [n, length], item ids,
  newest last, which wins over the stored one (empty elements are padding).
- Outputs ``item_id`` BYTES [n, k] and ``score`` FP32 [n, k], best first. A row of fewer than ``k`` items ends
  in empty ids and scores of -inf. Always raw contents, one entry per output, in the order asked. ``score``
  with the parameter ``classification`` (int64 m) is BYTES [n, m] of "score:position:item_id".
- Request parameters: ``k`` (integer, 10), ``exclude`` (string: item ids separated by commas, or a JSON list),
  ``include_seen`` (bool), ``variant`` (string), ``priority`` (1, the most urgent, to 4; 0 the default) and
  ``timeout`` (microseconds within which the answer must be ready; a request that is late leaves the queue
  with UNAVAILABLE). Others are ignored, as Triton ignores them.
- Response parameters: ``source`` ("model" or "popularity" of each row, separated by commas) and ``warnings``.
- Unknown users and items are cold starts, not errors. One bad row fails the call with INVALID_ARGUMENT that
  names the row, as one bad tensor does at Triton.
- Statuses: an unknown model or version is NOT_FOUND, a full server RESOURCE_EXHAUSTED (Triton: UNAVAILABLE),
  shared memory, the named repository and what the server cannot do UNIMPLEMENTED.

Not there: ModelStreamInfer, shared memory, trace and log settings, sequences. ``tensors`` has the elements,
``requests`` and ``replies`` the two messages of ModelInfer, ``inference`` one call and its rows, ``describe``
metadata and configuration, ``statistics`` the counts, ``models`` what is needed of a model repository.
"""
