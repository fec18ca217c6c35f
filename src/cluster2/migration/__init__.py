"""Options of other servers, translated: which of ours does the same, and what has no counterpart."""
