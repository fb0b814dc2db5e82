"""The KV cache's bookkeeping: which page belongs to whom. The bytes live in a backend."""
