"""Channels and blocks of a residual network, one by one."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetSizes:
    """What a residual network consists of, where a width and a depth do not say it.

    Blocks are numbered over all stages; a network that leaves some out keeps the
    numbers, and thereby the parameter names, of the others.

    Example:
      >>> ResNetSizes.of(channels=(16, 32), num_blocks=(1, 2)).stages[1]
      (32, ((1, None), (2, None)))
    """

    stem: int  # channels of the first convolution
    # Of each stage its channels and its blocks; of each block its number and the
    # channels in between (None: what its class takes by itself).
    stages: tuple[tuple[int, tuple[tuple[int, int | None], ...]], ...]

    def __post_init__(self):
        counts = [self.stem]
        for channels, blocks in self.stages:
            counts += [channels, len(blocks)]
            counts += [hidden for _, hidden in blocks if hidden is not None]
        if min(counts) < 1 or not self.stages:
            raise ValueError(
                "stages must not be empty, and every stage must have a block, every"
                f" layer a channel, got stem {self.stem}, stages {self.stages}"
            )

    @classmethod
    def of(
        cls,
        *,
        channels: tuple[int, ...],
        num_blocks: tuple[int, ...],
        stem: int | None = None,
    ) -> "ResNetSizes":
        """Returns the sizes of a network of so many blocks of these channels a stage.

        Args:
          channels: of each stage.
          num_blocks: of each stage.
          stem: channels of the first convolution; None is those of the first stage.
        """
        stages, first = [], 0
        for features, count in zip(channels, num_blocks, strict=True):
            numbers = range(first, first + count)
            stages.append((features, tuple((number, None) for number in numbers)))
            first += count
        return cls(stem=stem or channels[0], stages=tuple(stages))
