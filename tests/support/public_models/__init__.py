"""Well-known linen models, written as their authors would: they know nothing of us."""
