"""Parts of Learning-Compression: rules, schedule, history, sizes of codebooks."""
