"""The names of the files that every bundle has."""

ITEMS = "items.arrow"
ITEM_LOOKUP = "item_lookup.arrow"
ITEM_EMBEDDINGS = "item_embeddings.npy"
POPULARITY = "popularity.npy"
# Optional: seconds since the epoch of each item's first interaction, 0 for none, int64.
FIRST_SEEN = "first_seen.npy"
HISTORIES = "histories.arrow"
USER_LOOKUP = "user_lookup.arrow"
# Of bundles with a table variant: row i is the query embedding of the user in row i of HISTORIES.
USER_EMBEDDINGS = "user_embeddings.npy"

# The query encoder reads the item table through this initializer; it is bound to ITEM_EMBEDDINGS at load,
# so the vectors exist once on disk, and the encoders of all processes share one map.
ITEM_EMBEDDINGS_INITIALIZER = "item_embeddings"
# ONNX Runtime looks for outside data below this folder, whatever the graph itself was read from.
EXTERNAL_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
HISTORY_INPUT = "history"
TIME_GAPS_INPUT = "time_gaps"
QUERY_EMBEDDING_OUTPUT = "query_embedding"
# Of an incremental encoder, which reads new items (n,) of a history beside what it gave of those before: keys
# and values of each layer, past0, past1, … (n_past, n_heads, head size). It gives those of the new ones (2
# n_layers, n, n_heads, head size). Its time gaps (n_past + n,) are those of all.
PAST_INPUT = "past"
# What this makes of a product with nothing divides by zero, and ends the process (ONNX Runtime 1.31):
# histories of which nothing was computed need a session without it.
UNSAFE_OF_NOTHING = ("MatmulTransposeFusion",)
NEW_OUTPUT = "new"
# Of bundles with a ranker: its graph's inputs and output; history is that of the encoder.
USER_INPUT = "user"
CONTEXT_INPUT = "context"
CANDIDATES_INPUT = "candidates"
# Float32, NaN where it is not known how an item of the history was rated.
HISTORY_VALUES_INPUT = "history_values"
LOGITS_OUTPUT = "logits"
# Recorded rows of the user table: their numbers and what stands in them.
USER_ROW_RECORD = "user_row"
USER_EMBEDDING_RECORD = "user_embedding"
