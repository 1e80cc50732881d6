"""The searches: a file for each system's method, and folders of what they share.

`runs` takes a method from plain objects to a finished workdir. Below the methods lie
`in_training` (samples, controllers, clips), `sensitivities`, `cells`, `compression`,
`joint` (sub-network and formats together) and `multi_objective`.
"""
