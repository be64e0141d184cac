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
# Of an incremental encoder, which reads new items beside what it gave of those before: key and value of each
# layer, past0, past1, … (1, n_heads, n_past, head size), and all of the new ones (2 n_layers, n_heads, n, …).
PAST_INPUT = "past"
PAST_GAPS_INPUT = "past_gaps"
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
