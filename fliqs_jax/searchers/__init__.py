"""The searches: a file for each system's method, and folders of what they share.

Below the methods lie `in_training` (samples, controllers, clips), `sensitivities`,
`cells`, `compression`, `joint` (sub-network and formats together) and
`multi_objective`. Nothing here opens a workdir or writes a page: `fliqs_jax.runs` does.
"""
