"""The searches, a file each for its method, and what a finished one leaves behind."""
